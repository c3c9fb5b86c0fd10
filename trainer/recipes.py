"""Named, complete ways to train, each a function that returns a Config.

A variant changes only what differs: `replace(base(), field=value)`.
"""

from collections.abc import Callable
from dataclasses import replace

from trainer.config import Config
from trainer.errors import UsageError


def default() -> Config:
    """A small residual network at the data's own size, for data nobody has looked at yet.

    Number of classes, channels, image size, epochs, batch, flip and precision follow from
    the data set and the machine.  About 120,000 examples are seen: on two cores with
    bfloat16, 2 minutes at 28 by 28 pixels (measured), 10 at 64 by 64 (reckoned from that).

    python -m trainer train --data=runs/photos --output=runs/model
    """
    return Config()


def digits() -> Config:
    """scikit-learn's 1,797 hand-written digits of 8 by 8 pixels.

    Half a minute on two cores; accuracy 0.989 on the 351 test images (measured, one seed).

    python -m trainer prepare --dataset=digits --output=runs/digits
    python -m trainer train --data=runs/digits --recipe=digits --output=runs/digits-model
    """
    return replace(default(), image_size=8, train_epochs=60, batch_size=64, random_flip="off", resnet_size=14)


def cifar10_resnet20() -> Config:
    """ResNet-20 as in He et al. 2015 (arXiv 1512.03385, section 4.2), on 32 by 32 colour images.

    The paper's accuracy on CIFAR-10 is 0.9125 (literature).  On two cores with bfloat16,
    750 images a second (measured): 3 hours and a half for the 182 epochs.

    python -m trainer prepare --dataset=cifar10 --output=runs/cifar10
    python -m trainer train --data=runs/cifar10 --recipe=cifar10_resnet20 --output=runs/cifar10-model
    """
    return replace(
        default(),
        train_epochs=182,
        batch_size=128,
        image_size=32,
        crop_padding=4,
        random_flip="on",
        validation_fraction=0.0,
        norm_momentum=0.997,
        schedule="step",
        decay_epochs=(91, 136, 182),
        warmup_epochs=0.0,
    )


def cifar10_resnet56() -> Config:
    """ResNet-56 as in He et al. 2015, on 32 by 32 colour images.

    The paper's accuracy on CIFAR-10 is 0.9303; the 2019 trainers were held to 0.929 to 0.938
    (literature).  Three times the arithmetic of cifar10_resnet20.

    python -m trainer train --data=runs/cifar10 --recipe=cifar10_resnet56 --output=runs/cifar10-model
    """
    return replace(cifar10_resnet20(), resnet_size=56)


RECIPES: dict[str, Callable[[], Config]] = {
    "default": default,
    "digits": digits,
    "cifar10_resnet20": cifar10_resnet20,
    "cifar10_resnet56": cifar10_resnet56,
}


def recipe(name: str) -> Config:
    """The Config of a recipe; "" is the default.

    Raises:
      UsageError: no such recipe; lists those there are.
    """
    if (name or "default") not in RECIPES:
        raise UsageError(f"no recipe '{name}'; there are {', '.join(RECIPES)}")
    return RECIPES[name or "default"]()
