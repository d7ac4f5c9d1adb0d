"""preprocessor_config.json as published, by processor, and some that make the rules work harder."""

from typing import Any

CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}
HALF = CLIP | {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = CLIP | {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
SQUARE = {"crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
QWEN = {"merge_size": 2, "patch_size": 14, "temporal_patch_size": 2}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl", CLIP | QWEN | {"min_pixels": 3136, "max_pixels": 12845056}),
    "qwen2_vl_narrow": ("qwen2_vl", CLIP | QWEN | {"min_pixels": 65536, "max_pixels": 131072}),
    "qwen3_vl": (
        "qwen3_vl",
        HALF | QWEN | {"patch_size": 16, "size": {"longest_edge": 16777216, "shortest_edge": 65536}},
    ),
    "llama4": ("llama4", HALF | {"resample": 2, "max_patches": 16, "size": {"height": 336, "width": 336}}),
    "llama4_few": ("llama4", HALF | {"resample": 2, "max_patches": 5, "size": {"height": 336, "width": 336}}),
    "llava15": ("llava15", CLIP | SQUARE),
    "llava15_pad": ("llava15_pad", CLIP | SQUARE | {"do_pad": True}),
    "llava_next": ("llava_next", CLIP | SQUARE | {"image_grid_pinpoints": PINPOINTS}),
    "pixtral": ("pixtral", CLIP | {"patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 1024}}),
    "pixtral_small": ("pixtral", CLIP | {"patch_size": {"height": 16, "width": 16}, "size": {"longest_edge": 256}}),
    "mistral3": ("mistral3", CLIP | {"patch_size": {"height": 14, "width": 14}, "size": {"longest_edge": 1540}}),
    "internvl": (
        "internvl",
        IMAGENET | {"size": {"height": 448, "width": 448}, "min_patches": 1, "max_patches": 12},
    ),
    "internvl_few": (
        "internvl",
        IMAGENET | {"size": {"height": 224, "width": 224}, "min_patches": 2, "max_patches": 6},
    ),
    "phi3v": ("phi3v", {"num_crops": 16}),
    "phi35v": ("phi3v", {"num_crops": 4}),
}
"""By name of the expectation: the processor, and its fields."""
APPROXIMATE = {"llama4", "phi3v"}
"""Processors that are compared value by value: the published ones resize in another way."""
