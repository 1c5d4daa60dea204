"""A trainer, a detector and a checkpointer with the names and the habits of detectron2's, none of its code."""

import weakref

import torch
from torch import nn


class Conv(nn.Conv2d):
    """A convolution that runs its norm and its activation itself."""

    def __init__(self, *args, norm=None, activation=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, x):
        x = super().forward(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)


class FrozenNorm(nn.Module):
    """BatchNorm whose scales are buffers."""

    def __init__(self, width):
        super().__init__()
        for name, value in {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.items():
            self.register_buffer(name, torch.full((width,), value))
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + shift.reshape(1, -1, 1, 1)


class Pyramid(nn.Module):
    """Two stages and a pyramid whose convolutions stand in plain lists as well."""

    def __init__(self, width, norm):
        super().__init__()
        self.stem = Conv(3, width, 3, 2, 1, bias=False, norm=norm(width), activation=torch.relu)
        self.res2 = Conv(width, width, 3, 2, 1, bias=False, norm=norm(width), activation=torch.relu)
        self.res3 = Conv(width, width, 3, 2, 1, bias=False, norm=norm(width), activation=torch.relu)
        lateral, output = [], []
        for level in (2, 3):
            lateral.append(Conv(width, width, 1, norm=nn.BatchNorm2d(width)))
            output.append(Conv(width, width, 3, padding=1))
            self.add_module(f"fpn_lateral{level}", lateral[-1])
            self.add_module(f"fpn_output{level}", output[-1])
        self.lateral_convs, self.output_convs = lateral[::-1], output[::-1]

    def forward(self, x):
        fine = self.res2(self.stem(x))
        coarse = self.lateral_convs[0](self.res3(fine))
        fine = self.lateral_convs[1](fine) + nn.functional.interpolate(
            coarse, scale_factor=2.0, mode="nearest"
        )
        return [self.output_convs[1](fine), self.output_convs[0](coarse)]


class Found:
    """Detections of an image, with fields."""

    def __init__(self, **fields):
        self._fields = fields

    def get_fields(self):
        return self._fields


class Detector(nn.Module):
    """A dense head on a pyramid; it takes a list of dicts and keeps the best places above a threshold."""

    def __init__(self, width=32, norm=nn.BatchNorm2d):
        super().__init__()
        self.backbone = Pyramid(width, norm)
        self.tower = Conv(width, width, 3, padding=1, activation=torch.relu)
        self.score, self.delta = nn.Conv2d(width, 1, 3, padding=1), nn.Conv2d(width, 4, 3, padding=1)
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), 0.5))

    def forward(self, batch):
        images = torch.stack([item["image"] - self.pixel_mean for item in batch])
        maps = [self.tower(level) for level in self.backbone(images)]
        scores = torch.cat([self.score(level).flatten(1) for level in maps], 1)
        deltas = torch.cat([self.delta(level).flatten(2) for level in maps], 2)
        if self.training:
            wanted = torch.stack([item["instances"].get_fields()["place"] for item in batch])
            return {
                "loss_score": nn.functional.cross_entropy(scores, wanted),
                "loss_delta": deltas.square().mean(),
            }
        found = []
        for own, boxes in zip(scores.sigmoid(), deltas.movedim(1, 2), strict=True):
            best, at = own.topk(5)
            at = at[best > 0.05]
            found.append({"instances": Found(scores=own[at], boxes=boxes[at])})
        return found


class Hook:
    trainer = None

    def before_train(self): ...

    def after_train(self): ...

    def before_step(self): ...

    def after_step(self): ...

    def state_dict(self):
        return {}


class Scheduler(Hook):
    """Holds on to the optimizer that it saw first."""

    def __init__(self, steps, rate):
        self._steps, self._rate, self._optimizer = steps, rate, None

    def before_train(self):
        self._optimizer = self.trainer.optimizer

    def before_step(self):
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * (1 - self.trainer.iter / self._steps)


class Storage:
    """Remembers the latest value of every number and its iteration."""

    def __init__(self):
        self.iter, self._latest = 0, {}

    def put_scalar(self, name, value, smoothing_hint=True, cur_iter=None):
        self._latest[name] = (float(value), self.iter)

    def put_scalars(self, *, smoothing_hint=True, cur_iter=None, **numbers):
        for name, value in numbers.items():
            self.put_scalar(name, value)

    def latest(self):
        return self._latest


class Evaluation(Hook):
    """Leaves an AP in per cent where the host's evaluation leaves it."""

    def after_step(self):
        if self.trainer.iter % 2:
            self.trainer.storage.put_scalar("bbox/AP", 40.0)


class Saving(Hook):
    def __init__(self, checkpointer, period):
        self.checkpointer, self.period = checkpointer, period

    def after_step(self):
        if (self.trainer.iter + 1) % self.period == 0:
            self.checkpointer.save(f"model_{self.trainer.iter}")


class Checkpointer:
    """Loads the weights that fit, then everything else; never while it is loading."""

    def __init__(self, model, folder, trainer):
        self.model, self.save_dir, self.trainer, self._busy = model, str(folder), trainer, False
        self._folder = folder

    def save(self, name):
        torch.save(
            {"model": self.model.state_dict(), "trainer": self.trainer.state_dict()}, self._folder / name
        )
        (self._folder / "last_checkpoint").write_text(name)

    def has_checkpoint(self):
        return (self._folder / "last_checkpoint").exists()

    def get_checkpoint_file(self):
        return str(self._folder / (self._folder / "last_checkpoint").read_text())

    def load(self, path, checkpointables=None):
        if self._busy:
            raise RuntimeError("it is loading already")
        self._busy = True
        saved, own = torch.load(path, weights_only=True), self.model.state_dict()
        fitting = {name: value for name, value in saved["model"].items() if value.shape == own[name].shape}
        self.model.load_state_dict(fitting, strict=False)
        if checkpointables is None:
            self.trainer.load_state_dict(saved["trainer"])
        self._busy = False


class Inner:
    """Makes the step, with scaled gradients."""

    def __init__(self, model, data_loader, optimizer):
        self.model, self.data_loader, self.optimizer = model, data_loader, optimizer
        self.grad_scaler = torch.amp.GradScaler("cpu")
        self._batches = None

    def run_step(self):
        if not self.model.training:
            raise RuntimeError("the model was left in evaluation mode")
        self._batches = self._batches or iter(self.data_loader)
        losses = self.model(next(self._batches))
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


class Trainer:
    """Drives an inner trainer; its hooks see it through a weak reference."""

    def __init__(self, model, data_loader, optimizer, folder, steps):
        model.train()
        self._trainer, self._hooks = Inner(model, data_loader, optimizer), []
        self.iter, self.start_iter, self.max_iter = 0, 0, steps
        self.checkpointer = Checkpointer(model, folder, weakref.proxy(self))
        self.register_hooks(
            [Scheduler(steps, optimizer.param_groups[0]["lr"]), Saving(self.checkpointer, 4), Evaluation()]
        )

    model = property(lambda self: self._trainer.model)
    optimizer = property(lambda self: self._trainer.optimizer)
    data_loader = property(lambda self: self._trainer.data_loader)

    def register_hooks(self, hooks):
        for hook in hooks:
            hook.trainer = weakref.proxy(self)
        self._hooks.extend(hooks)

    def state_dict(self):
        hooks = {type(hook).__qualname__: state for hook in self._hooks if (state := hook.state_dict())}
        return {"iteration": self.iter, "hooks": hooks, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.iter = state["iteration"]
        for hook in self._hooks:
            if (name := type(hook).__qualname__) in state["hooks"]:
                hook.load_state_dict(state["hooks"][name])
        self.optimizer.load_state_dict(state["optimizer"])

    def resume(self):
        self.checkpointer.load(self.checkpointer.get_checkpoint_file())
        self.start_iter = self.iter + 1

    def train(self):
        self.storage = Storage()
        try:
            self._call("before_train")
            for now in range(self.start_iter, self.max_iter):
                self.iter = self.storage.iter = now
                self._call("before_step")
                self._trainer.run_step()
                self._call("after_step")
            self.iter += 1
        finally:
            self._call("after_train")

    def _call(self, name):
        for hook in self._hooks:
            getattr(hook, name)()


def loader(images=4):
    """Batches of two images that are begun anew at their end, for ever."""
    generator = torch.Generator().manual_seed(0)
    made = [
        {
            "image": torch.rand(3, 64, 64, generator=generator),
            "instances": Found(place=torch.tensor(7 * index)),
        }
        for index in range(images)
    ]

    class Endless:
        def __iter__(self):
            while True:
                for first in range(0, images, 2):
                    yield made[first : first + 2]

    return Endless()
