"""Images made out of others: the same for all that belong together, new every time, and never of another shape."""

import pytest
import torch

from yolo_prune.recover.augment import augmented


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=4, size=(24, 32)):
    ramp = torch.linspace(0, 1, size[1]).expand(count, 3, *size)
    return ramp * torch.arange(1, count + 1).view(-1, 1, 1, 1) / count


def test_a_batch_keeps_its_shape_and_type_and_differs_from_draw_to_draw():
    draws, batch = generator(), pictures()
    first, second = augmented(batch, draws), augmented(batch, draws)
    for made in (first, second):
        assert made.shape == batch.shape
        assert made.dtype == batch.dtype
        assert not torch.allclose(made, batch, atol=0.05)
        assert float(made.min()) >= 0
    assert not torch.allclose(first, second, atol=0.05)
    assert torch.equal(first, augmented(batch, generator()))
    assert torch.equal(batch, pictures()), "what was handed over stays"
    assert augmented(batch.half(), generator()).dtype == torch.float16


def test_what_lies_beside_each_other_is_changed_alike_and_what_is_no_image_stays():
    images, boxes = pictures(), torch.rand(4, 5, 4)
    batch = {
        "left": images,
        "right": images.clone(),
        "boxes": boxes,
        "ids": torch.arange(4),
        "list": [images[0], images[0]],
    }
    made = augmented(batch, generator())
    assert torch.equal(made["left"], made["right"])
    assert torch.equal(made["list"][0], made["list"][1])
    assert torch.equal(made["boxes"], boxes)
    assert torch.equal(made["ids"], torch.arange(4))
    maps = torch.rand(2, 16, 8, 8)
    assert augmented(maps, generator()) is maps, "feature maps are no images"


def test_images_are_mirrored_zoomed_and_put_together():
    ramps, mixed, steepness = [], 0, []
    for seed in range(40):
        made = augmented(
            torch.stack([torch.linspace(0.5, 1, 32).expand(3, 24, 32), torch.zeros(3, 24, 32)]),
            generator(seed),
        )
        dark = made[0].amax(0) < 0.25
        mixed += bool(dark.any() and not dark.all())
        row = made[0, 0, 12]
        if not dark.any():
            ramps.append(float(row[-4:].mean() - row[:4].mean()) > 0)
            steepness.append(float((row[1:] - row[:-1]).abs().median() / row.mean()))
    assert 0.2 < sum(ramps) / len(ramps) < 0.8, "mirrored half of the time"
    assert max(steepness) > 1.5 * min(steepness), "zoomed"
    assert mixed > 4, "put together from four"


@pytest.mark.parametrize("shape", [(3, 24, 24), (1, 1, 16, 16), (1, 3, 2, 2)])
def test_an_image_alone_is_varied_too(shape):
    image = torch.rand(shape, generator=generator())
    made = augmented(image, generator(2))
    assert made.shape == image.shape
    assert not torch.equal(made, image)
