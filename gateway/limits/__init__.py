"""Who may ask, how much, and when: API keys, their quotas, admission, and the memory of bodies."""

from gateway.limits.admission import Admission
from gateway.limits.byte_budget import ByteBudget
from gateway.limits.keys import ApiKey, KeyFile, KeyFileError, Keys
from gateway.limits.priority import DEFAULT, PRIORITIES, no_better_than

__all__ = [
    "DEFAULT",
    "PRIORITIES",
    "Admission",
    "ApiKey",
    "ByteBudget",
    "KeyFile",
    "KeyFileError",
    "Keys",
    "no_better_than",
]
