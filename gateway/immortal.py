"""What exists when serving begins lives as long as the process, so nobody needs to count references to it.

On a free-threaded build, a thread counts its references to an object that another thread made by an atomic addition to
the object itself, and threads that use the same one hand its counter from core to core: sixteen that render a template
take five times the CPU of one. CPython 3.13t's answer for functions, classes, modules and constants is to make them
immortal, by a value of the count that all read and nobody changes. This does the same for what the gateway's threads
share besides: models, templates, tables, compiled patterns, the router.

CPython 3.13 has no interface for it, so the count is set where it lies in memory, once it has been found to lie there.
Where it does not, nothing is done, and all works, but slower on many cores.

Threads: the main one, before there are others. A list of all objects holds those, too, that another thread is about to
make: a tuple's size is found while it is filled, and where somebody else refers to it then, CPython raises SystemError.
Of an object's two counts only the thread that made it changes the one that is set here.
"""

import ctypes
import gc
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from types import (
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)

IMMORTAL = 0xFFFFFFFF
COUNT = 3
"""Where an object has the count of the thread that made it (`ob_ref_local`), in words of 32 bits. Its first 64 bits say
which thread that is (`ob_tid`)."""

WITHOUT_MORE = {
    *(CodeType, FunctionType, str, bytes, int, float),
    *(GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType),
}
"""What refers to nothing, or only to what is immortal or found by itself: looking there would take twice the time."""
Owners = ctypes.Array[ctypes.c_uint64]
Words = ctypes.Array[ctypes.c_uint32]


def make_immortal() -> int:
    """All that this thread has made and that is still there, while no other thread runs.

    Returns how many objects that were, 0 where it cannot be done: with a GIL nobody contends for counts, and another
    interpreter may keep them elsewhere.
    """
    if not sysconfig.get_config_var("Py_GIL_DISABLED") or sys._is_gil_enabled():
        return 0
    owners, words = (ctypes.c_uint64 * (1 << 44)).from_address(0), (ctypes.c_uint32 * (1 << 45)).from_address(0)
    if not _counts_lie_there(owners, words):
        return 0
    gc.unfreeze()  # or they would not be listed
    found: Iterable[object] = gc.get_objects()
    owner, count, seen = owners[id(found) // 8], 0, set[int]()
    while found:
        new = []
        for each in found:
            address = id(each)
            if words[address // 4 + COUNT] != IMMORTAL and owners[address // 8] == owner:
                words[address // 4 + COUNT] = IMMORTAL
                count += 1
            elif type(each) in WITHOUT_MORE or address in seen:
                continue
            else:
                seen.add(address)
            new.append(each)
        found = list(_referents(new))
    return count


def _referents(objects: Iterable[object]) -> Iterator[object]:
    """Also what the collector does not list: strings, numbers, most tuples; and what it does not follow: keys that are
    strings, and types written in C."""
    yield from gc.get_referents(*[each for each in objects if type(each) not in WITHOUT_MORE])
    for each in objects:
        if type(each) is FunctionType:
            yield from (each.__code__, each.__defaults__, each.__kwdefaults__, each.__closure__)
        elif type(each) is dict:
            yield from [*each]
        elif isinstance(each, type):
            yield from vars(each).values()


def _counts_lie_there(owners: Owners, words: Words) -> bool:
    """Whether objects are laid out as 3.13t's: tried on None, which is immortal, and on two that are not."""
    probe, other = object(), object()
    word = id(probe) // 4 + COUNT
    before = words[word]
    another = probe
    return (
        words[id(None) // 4 + COUNT] == IMMORTAL
        and words[id(another) // 4 + COUNT] == before + 1
        and owners[id(probe) // 8] == owners[id(other) // 8] != 0
    )
