"""A UNet together with its control networks: the network that one denoising step of the pair computes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from accuquant.networks.control_signature import (
    DOWN,
    IMAGE,
    MID,
    SCALE,
    control_signature,
    controlled_signature,
    image_names,
    unet_signature,
)
from accuquant.networks.network import ADDED, remember_call
from accuquant.networks.signature import Signature

Residuals = tuple[list[Tensor], Tensor]


class ControlledNetwork(nn.Module):
    """Computes the control networks' residuals and the prediction of the UNet that takes them.

    Calibration sees one network: trajectories are those of the pair, and the layers of both are in one
    recipe, named as in the pipeline: `unet.mid_block...`, `controlnet.mid_block...`, and with several control
    networks `controlnet.nets.0.mid_block...`. `controlnet` is a ControlNetModel or a MultiControlNetModel.
    """

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet

    @property
    def config(self) -> Any:
        """The UNet's configuration."""
        return self.unet.config

    @property
    def controls(self) -> tuple[nn.Module, ...]:
        """The control networks."""
        return controls_of(self.controlnet)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The networks by the names that their layers begin with."""
        names = [f"controlnet.nets.{k}" for k in range(len(self.controls))]
        if not hasattr(self.controlnet, "nets"):
            names = ["controlnet"]
        return {"unet": self.unet, **dict(zip(names, self.controls, strict=True))}

    @property
    def signature(self) -> Signature:
        """What the pair takes and returns."""
        return controlled_signature(self.config, tuple(_config_of(net) for net in self.controls))

    def control_signature(self, control: nn.Module) -> Signature:
        """Return what one of the control networks takes and gives."""
        return control_signature(_config_of(control), self.config)

    def forward(self, sample: Tensor, timestep: Tensor | float, **given: Any) -> tuple[Tensor]:
        """Return the prediction for sample [B, C, H, W]; `given` conditions it, by the signature's names.

        The control networks see as many channels of the sample as they take: an inpainting UNet has more.
        """
        shared = {name: value for name, value in given.items() if not name.startswith((IMAGE, SCALE))}
        down, mid = self.residuals(sample, timestep, **given)
        prediction: tuple[Tensor] = self.unet(sample, timestep=timestep, **{**shared, DOWN: down, MID: mid})
        return prediction

    def residuals(self, sample: Tensor, timestep: Tensor | float, **given: Any) -> Residuals:
        """Return the residuals, summed over the control networks."""
        names = image_names(len(self.controls))
        scales = list(given[SCALE].unbind(0))
        images = [given[name] for name in names]
        shared = {name: value for name, value in given.items() if not name.startswith((IMAGE, SCALE))}
        several = hasattr(self.controlnet, "nets")
        channels = int(_config_of(self.controls[0])["in_channels"])
        down, mid = self.controlnet(
            sample[:, :channels],
            timestep=timestep,
            **shared | {"return_dict": False},
            **{IMAGE: images if several else images[0], SCALE: scales if several else scales[0]},
        )
        return list(down), mid

    def enable_gradient_checkpointing(self) -> None:
        """Let all networks compute their blocks again for gradients."""
        for part in self.parts.values():
            part.enable_gradient_checkpointing()  # type: ignore[operator]


def controlled(unet: nn.Module, controlnet: nn.Module) -> ControlledNetwork:
    """Return the pair, in which the UNet is called with residuals from now on."""
    remember_call(unet, unet_signature(_config_of(unet)))
    return ControlledNetwork(unet, controlnet).eval()


def with_residuals(
    network: ControlledNetwork, sample: Tensor, timestep: Tensor, conditioning: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the UNet is told beside sample and timestep by its signature's names: text, residuals."""
    given: dict[str, Any] = dict(conditioning)
    shared = {name: value for name, value in given.items() if not name.startswith((IMAGE, SCALE))}
    added = {name: given.pop(name) for name in ADDED if name in given}
    if added:
        given["added_cond_kwargs"] = added
    down, mid = network.residuals(sample, timestep, **given)
    return shared, {**{f"{DOWN}_{k}": residual for k, residual in enumerate(down)}, MID: mid}


def call_control(
    network: nn.Module, sample: Tensor, timestep: Tensor | float, conditioning: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    """Run one control network with tensors by its signature's names -> its residuals, the middle's last."""
    given: dict[str, Any] = dict(conditioning)
    added = {name: given.pop(name) for name in ADDED if name in given}
    if added:
        given["added_cond_kwargs"] = added
    down, mid = network(sample, timestep=timestep, return_dict=False, **given)
    return (*down, mid)


def controls_of(controlnet: nn.Module) -> tuple[nn.Module, ...]:
    """Return the control networks of a ControlNetModel, which is one, or of a MultiControlNetModel."""
    nets = getattr(controlnet, "nets", None)
    return (controlnet,) if nets is None else tuple(nets)


def _config_of(network: nn.Module) -> Any:
    return network.config
