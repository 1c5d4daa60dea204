"""Networks that packages on PyPI ship, with random weights: what the table of models is made of."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

CLASSIFIERS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "densenet121"),
    *("squeezenet1_1", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0"),
    *("efficientnet_v2_s", "shufflenet_v2_x1_0", "regnet_x_400mf", "regnet_y_400mf", "googlenet"),
    *("inception_v3", "convnext_tiny"),
)
SEGMENTERS = (
    *("fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"),
)
DETECTORS = (
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"),
    *("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2", "fcos_resnet50_fpn", "ssd300_vgg16"),
    *("ssdlite320_mobilenet_v3_large", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
)
OF_TIMM = (
    *("mobilenetv3_large_100", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "efficientnet_lite0"),
    *("tf_efficientnetv2_b0", "mixnet_s", "fbnetc_100", "lcnet_050", "rexnet_100", "ghostnet_100"),
    *("repghostnet_050", "hardcorenas_a", "semnasnet_075", "spnasnet_100", "hrnet_w18_small", "dla34"),
    *(
        "darknet53",
        "cspdarknet53",
        "cspresnet50",
        "repvgg_a0",
        "mobileone_s0",
        "resnest14d",
        "res2net50_26w_4s",
    ),
    *("skresnet18", "seresnet18", "ecaresnet26t", "dpn68", "selecsls42b", "ese_vovnet19b_dw", "nfnet_l0"),
    *(
        "xception41",
        "inception_v4",
        "starnet_s1",
        "regnety_004",
        "fastvit_t8",
        "mobilevit_xxs",
        "efficientvit_b0",
    ),
    *("convnext_atto", "edgenext_xx_small", "poolformer_s12"),
)


OF_YOLOV5 = ("yolov5n", "yolov5s-ghost", "yolov5s-transformer", "yolov5-bifpn", "yolov3-tiny", "yolov5n6")
OF_YOLOX = ("yolox_nano", "yolox_tiny", "yolox_s")
OF_EFFDET = ("tf_efficientdet_lite0", "efficientdet_d0", "cspresdext50pan", "efficientdetv2_dt")
OF_SEGMENTATION = (
    *(("Unet", "resnet18"), ("UnetPlusPlus", "resnet18"), ("MAnet", "mobilenet_v2"), ("Linknet", "resnet18")),
    *(("FPN", "mobilenet_v2"), ("PSPNet", "resnet18"), ("PAN", "resnet18"), ("DeepLabV3", "mobilenet_v2")),
    *(("DeepLabV3Plus", "resnet18"), ("UPerNet", "resnet18"), ("Segformer", "mit_b0")),
)


@dataclass(frozen=True)
class Network:
    """A network to try: ``make`` builds it from random weights, ``example`` is what it takes."""

    name: str
    kind: str
    make: Callable[[], nn.Module]
    example: Any
    exported: bool = True

    def run(self, model: nn.Module) -> Any:
        """Call a network with its example."""
        return model(**self.example) if isinstance(self.example, dict) else model(self.example)


def networks() -> Iterator[Network]:
    """Yield the networks of every package that is installed."""
    for package, found in PACKAGES.items():
        if importlib.util.find_spec(package) is not None:
            yield from found()


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [package for package in PACKAGES if importlib.util.find_spec(package) is None]


def of_torchvision() -> Iterator[Network]:
    from torchvision import models

    for name in CLASSIFIERS:
        side = 128 if name != "inception_v3" else 160
        aux = {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield Network(
            name,
            "torchvision, classification",
            lambda name=name, aux=aux: models.get_model(name, weights=None, num_classes=20, **aux),
            torch.rand(1, 3, side, side),
        )
    for name in SEGMENTERS:
        yield Network(
            name,
            "torchvision, segmentation",
            lambda name=name: models.get_model(name, weights=None, weights_backbone=None, num_classes=20),
            torch.rand(1, 3, 64, 64),
        )
    for name in DETECTORS:
        yield Network(
            name,
            "torchvision, detection",
            lambda name=name: detector(name),
            torch.rand(1, 3, 128, 128),
            False,
        )


def detector(name: str) -> nn.Module:
    from torchvision import models

    size = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    if "rcnn" in name:
        size |= {"rpn_post_nms_top_n_test": 50, "box_detections_per_img": 10}
    return models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **size)


def of_timm() -> Iterator[Network]:
    import timm

    for name in OF_TIMM:
        side = timm.get_pretrained_cfg(name).to_dict()["input_size"][-1] if "vit" in name else 128
        yield Network(
            name,
            "timm, classification",
            lambda name=name: timm.create_model(name, pretrained=False, num_classes=20),
            torch.rand(1, 3, side, side),
        )


def of_yolov5() -> Iterator[Network]:
    """YOLOv5's own repository as a package."""
    folder = Path(str(importlib.util.find_spec("yolov5").submodule_search_locations[0])) / "models"

    def make(name: str) -> nn.Module:
        from yolov5.models.yolo import Model

        return Model(str(next(folder.rglob(f"{name}.yaml"))), ch=3, nc=5)

    for name in OF_YOLOV5:
        yield Network(
            name,
            "yolov5, detection",
            lambda name=name: silently(make, name),
            torch.rand(1, 3, 128, 128),
            False,
        )


def of_yolox() -> Iterator[Network]:
    def make(name: str) -> nn.Module:
        from yolox.config import YoloxConfig

        config = YoloxConfig.get_named_config(name)
        config.num_classes = 5
        return config.get_model()

    for name in OF_YOLOX:
        yield Network(
            name, "yolox, detection", lambda name=name: make(name), torch.rand(1, 3, 128, 128), False
        )


def of_effdet() -> Iterator[Network]:
    def make(name: str) -> nn.Module:
        from effdet import create_model

        return create_model(
            name, pretrained=False, pretrained_backbone=False, num_classes=5, image_size=(128, 128)
        )

    for name in OF_EFFDET:
        yield Network(name, "effdet, detection", lambda name=name: make(name), torch.rand(1, 3, 128, 128))


def of_segmentation() -> Iterator[Network]:
    def make(name: str, encoder: str) -> nn.Module:
        import segmentation_models_pytorch

        return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None, classes=5)

    for name, encoder in OF_SEGMENTATION:
        side = (
            192 if name in ("PSPNet", "UPerNet") else 128
        )  # their pooling is exported for multiples of 6 alone
        yield Network(
            f"{name} on {encoder}",
            "segmentation_models_pytorch, segmentation",
            lambda name=name, encoder=encoder: make(name, encoder),
            torch.rand(1, 3, side, side),
        )


def of_transformers() -> Iterator[Network]:
    """Detectors with attention, by their own configurations, with fewer layers and queries."""
    common = {"num_labels": 5, "num_queries": 20, "decoder_layers": 2}
    plain = {**common, "encoder_layers": 2, "backbone": None, "use_timm_backbone": False}
    late = {"anchor_image_size": None, "num_denoising": 0, **common}
    rows = {
        "detr": ("Detr", {**plain, "use_pretrained_backbone": False}, "resnet"),
        "conditional_detr": ("ConditionalDetr", {**plain, "use_pretrained_backbone": False}, "resnet"),
        "deformable_detr": ("DeformableDetr", {**plain, "use_pretrained_backbone": False}, "pyramid"),
        "rt_detr": ("RTDetr", late, "rt_detr"),
        "rt_detr_v2": ("RTDetrV2", late, "rt_detr"),
        "d_fine": ("DFine", late, "hgnet"),
        "yolos": (
            "Yolos",
            {"num_labels": 5, "num_detection_tokens": 20, "image_size": [128, 128], **SMALL},
            None,
        ),
    }
    for name, (family, options, backbone) in rows.items():
        yield Network(
            name,
            "transformers, detection",
            lambda family=family, options=options, backbone=backbone: transformer(family, options, backbone),
            {"pixel_values": torch.rand(1, 3, 128, 128)},
            False,
        )


SMALL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}


def transformer(family: str, options: dict[str, Any], backbone: str | None) -> nn.Module:
    import transformers

    stages = ["stage2", "stage3", "stage4"]
    sizes = {"embedding_size": 32, "hidden_sizes": [128, 256, 512, 1024], "depths": [1, 1, 1, 1]}
    mixed = {"stem_channels": [3, 16, 32], "stage_in_channels": [32, 128, 256, 512]}
    wide = {"stage_out_channels": [128, 256, 512, 1024], "stage_mid_channels": [32, 64, 128, 256]}
    made: dict[str, Callable[[], Any]] = {
        "resnet": lambda: transformers.ResNetConfig(**sizes, out_features=["stage4"]),
        "pyramid": lambda: transformers.ResNetConfig(**sizes, out_features=stages),
        "rt_detr": lambda: transformers.RTDetrResNetConfig(**sizes, out_features=stages),
        "hgnet": lambda: transformers.HGNetV2Config(
            **sizes, **mixed, **wide, stage_num_blocks=[1, 1, 1, 1], out_features=stages
        ),
    }
    given = dict(options)
    if backbone is not None:
        given["backbone_config"] = made[backbone]()
    if backbone in ("rt_detr", "hgnet"):
        given["encoder_in_channels"] = [256, 512, 1024]
    config = getattr(transformers, f"{family}Config")(**given)
    return getattr(transformers, f"{family}ForObjectDetection")(config)


def silently(make: Callable[..., nn.Module], *args: Any) -> nn.Module:
    """Build what prints its layers, without that."""
    import logging

    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return make(*args)
    finally:
        logging.disable(logging.NOTSET)


PACKAGES: dict[str, Callable[[], Iterator[Network]]] = {
    "torchvision": of_torchvision,
    "timm": of_timm,
    "yolov5": of_yolov5,
    "yolox": of_yolox,
    "effdet": of_effdet,
    "transformers": of_transformers,
    "segmentation_models_pytorch": of_segmentation,
}
