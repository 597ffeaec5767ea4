"""Run in a process of its own: python _timm_vit.py FOLDER writes a random ViT of timm and what it computes.

FOLDER/vit.safetensors has the state dict; FOLDER/values.safetensors has ``image`` (normalised), ``tokens`` before the
first block, ``features`` after the last norm, ``positions`` (timm's at the grid 3 x 5). Exit status 3: no timm.

timm wants torchvision, which it needs for data and other models alone, and which exists for few versions of PyTorch;
where it cannot be imported, empty classes stand in for it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from pathlib import Path

import safetensors.torch
import torch


class _Constants(type):
    """A class with every constant, such as ``InterpolationMode.BICUBIC``."""

    def __getattr__(cls, name: str) -> str:
        if not name.isupper():
            raise AttributeError(name)
        return name


class _Stub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Any module torchvision.*, with a class for any name in it."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__version__ = "0"

        def attribute(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            stub = _Constants(name, (torch.nn.Module,), {})
            setattr(module, name, stub)
            return stub

        module.__getattr__ = attribute
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def main(folder: Path) -> int:
    if importlib.util.find_spec("timm") is None:
        return 3
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, AttributeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Stub())
    import timm
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", depth=2, embed_dim=24, num_heads=3, patch_size=8, img_size=32, num_classes=5,
        act_layer="gelu_tanh",
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.normal_(std=0.3)
        image = torch.rand(2, 3, 32, 32) * 2 - 1
        tokens = vit._pos_embed(vit.patch_embed(image))
        values = {
            "image": image,
            "tokens": tokens,
            "features": vit.forward_features(image),
            "positions": resample_abs_pos_embed(vit.pos_embed, [3, 5]),
        }
    safetensors.torch.save_file(vit.state_dict(), folder / "vit.safetensors")
    safetensors.torch.save_file(
        {name: value.contiguous() for name, value in values.items()}, folder / "values.safetensors"
    )
    print(timm.__version__)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
