"""Lightning's four verbs: fit, validate, test, predict."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from oper_lightning.algorithms.stage import Stage, class_path
from oper_lightning.cli import configuration, folders, signals, verdict
from oper_lightning.cli.announcement import Announcement, early_end
from oper_lightning.cli.callbacks import Events, PredictionWriter, Progress, SaveConfig
from oper_lightning.cli.checkpoints import AtomicCheckpointIO, checkpoint_callbacks
from oper_lightning.cli.help import LIGHTNING
from oper_lightning.cli.messages import explain, lightnings_objections, unwrap, wrap
from oper_lightning.cli.resume import changes
from oper_lightning.cli.start import Start
from oper_lightning.cli.words import FLAGS, bare, listed, plain, value_of, values_of, without
from oper_lightning.data.datamodule import OfflineDataModule
from oper_lightning.data.log import FOLDER, forget
from oper_lightning.errors import InputError, note
from oper_lightning.training import options
from oper_lightning.training.stored import read_checkpoint
from oper_lightning.trust import existing, load_all

# Where this package's runs differ from Lightning's defaults.
TRAINER = {
    "devices": 1,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 500,
    "enable_autolog_hparams": False,
}


class Parser(LightningArgumentParser):
    """Lightning's parser with errors on one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """Takes None for null: jsonargparse hands null on as Python writes it, to the parsers of nested classes."""
        words = args if args is None else [re.sub(r"^(--[\w.]+=)None$", r"\1null", word) for word in args]
        return super().parse_args(words, *more, **options)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Says in one line what is wrong, and leaves."""
        raise InputError(wrap(message, self)) from None


def call(function: Callable[..., None], words: list[str]) -> None:
    """Calls a function with arguments from the command line: its first parameter by position, the others by name.

    If the function takes even that by name only, it is a flag as well. The first one
    takes several words if its name is a plural.
    """
    load_all()  # so that short names are known, and told
    parser = Parser(prog=f"oper {function.__name__}")
    first = next(iter(inspect.signature(function).parameters.values()))
    by_name = first.kind is inspect.Parameter.KEYWORD_ONLY
    if by_name:
        pass
    elif not first.name.endswith("s"):
        needed = first.default is inspect.Parameter.empty
        parser.add_argument(first.name, type=str, **({} if needed else {"nargs": "?", "default": first.default}))
    elif first.default is inspect.Parameter.empty:
        parser.add_argument(first.name, nargs="+")
    else:
        parser.add_argument(first.name, nargs="*", default=[])
    parser.add_function_arguments(function, skip=set() if by_name else {first.name})
    try:
        arguments = parser.instantiate(parser.parse_args(words))
    except InputError as error:
        raise InputError(unwrap(str(error))) from None
    function(**vars(arguments))


class OperCLI(LightningCLI):
    """LightningCLI with run folders, whole checkpoints, and hyper-parameters that follow a checkpoint."""

    folder: Path | None
    checkpoint: Path | None
    start: Path | None
    """the checkpoint that a new run begins with"""
    earlier: dict[str, Any]
    """what the config.yaml beside the checkpoint holds"""
    reached: int | None
    """updates that the checkpoint has behind it"""

    def __init__(self, args: list[str]) -> None:
        load_all()
        self.verb = args[0]
        self.folder = self.checkpoint = self.start = None
        self.earlier = {}
        self.reached = None
        try:
            super().__init__(
                Stage,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                parser_class=Parser,
                parser_kwargs={self.verb: {"description": LIGHTNING[self.verb]}},
                save_config_callback=SaveConfig,
                seed_everything_default=0,
                trainer_defaults=TRAINER,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                args=args,
            )
        except InputError as error:
            raise InputError(configuration.with_origin(str(error), self.checkpoint, args)) from None

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb that was asked for, without the arguments that have no meaning here.

        A parser of all of Lightning's verbs would take four times as long to make.
        """
        return {self.verb: {*super().subcommands()[self.verb], "weights_only", "verbose", "return_predictions"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the run's folder."""
        parser.set_defaults({"data": {"class_path": class_path(OfflineDataModule)}})
        parser.add_argument(
            "--output",
            type=str | None,
            default=None,
            help="Folder that the run writes to; by default runs/<names of the yamls>/<number>.",
        )
        parser.add_argument(
            "--start",
            type=str | None,
            default=None,
            help="Checkpoint of another run, with whose networks, targets, optimisers and bonus this one begins.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Takes class and hyper-parameters from the checkpoint where nothing was given explicitly."""
        assert isinstance(args, list)
        if "--help=all" in args:
            super().parse_arguments(parser, [args[0], "--help"])
        verb, words = args[0], args[1:]
        given = {name: value_of(words, *flags) for name, flags in FLAGS.items()}
        start = given.pop("start")
        if start is not None and verb != "fit":
            raise InputError(f"--start is what a run of `oper fit` begins with; {verb} takes --ckpt_path={start}")
        self.family = Path("runs") / ("-".join(Path(name).stem for name in values_of(words, *FLAGS["config"])) or verb)
        self.resume = given["checkpoint"] is not None
        if given["checkpoint"] not in (None, "last", "best"):
            given["checkpoint"] = str(configuration.checkpoint_file(str(given["checkpoint"]), verb))
        self.folder = self._folder(verb, **given)
        path = given["checkpoint"]
        if path in ("last", "best"):
            path = str(self.folder / f"{path}.ckpt") if self.folder else None
            if verb == "fit" and path and not os.path.lexists(path):
                path = None  # nothing to go on from yet
        if path is None and verb != "fit" and not any(word.startswith("--print_config") for word in words):
            raise InputError(f"oper {verb} needs a trained network: --ckpt_path=<folder of a run>")
        yamls = configuration.named_yamls(words)
        configuration.import_named(words, yamls)
        before: list[str] = []
        made_by = None
        if path is not None:
            before, made_by = self._from_checkpoint(Path(path), words, yamls)
            if start is not None:
                note(f"--start={start} is left aside: this run has begun, and goes on from {path}")
        elif start is not None:  # a run that goes on has begun already
            self.start = configuration.checkpoint_file(start, "start")
            before, made_by = self._from_start(self.start, words)
        own = configuration.with_text(without(words, *FLAGS["checkpoint"]), yamls)
        own += [f"--ckpt_path={path}"] if path is not None else []
        try:
            super().parse_arguments(parser, [verb, *before, *own])
        except InputError as error:
            parts = {path: configuration.with_text([f"--config={path}"], yamls) for path in yamls}
            beside = "the config.yaml beside it" if self.earlier else "no config.yaml beside it"
            parts |= {f"{path} and {beside}": before} if before else {}
            message = unwrap(str(error))
            if "expected one argument" in message and (flag := bare(words)):
                message = f"{flag} needs a value: {flag}=VALUE"
            raise InputError(configuration.blamed(parser, verb, parts, message, yamls)) from None
        for key, value in (("output", given["output"]), ("ckpt_path", path), ("start", start)):
            if value is None and self.config[verb].get(key) is not None:
                raise InputError(
                    f"{key} belongs on the command line, not into a yaml: --{key}={self.config[verb][key]}"
                )
        configuration.complete(self.config[verb].as_dict())
        named = self.config[verb].model.class_path
        if made_by is not None and existing(named, Stage) is not existing(made_by, Stage):
            raise InputError(f"{path or self.start} holds {made_by}, but the configuration asks for {named}")

    def _from_checkpoint(self, path: Path, words: list[str], yamls: dict[str, dict[str, Any]]) -> tuple[list[str], str]:
        """What a checkpoint and the config.yaml beside it say, as words of a command; and the checkpoint's class."""
        self.checkpoint = path
        checkpoint = read_checkpoint(path)
        self.reached = checkpoint["global_step"]
        beside = path.with_name("config.yaml")
        if beside.is_file():
            self.earlier = configuration.read_mapping(beside)
        data = {} if yamls else self.earlier
        return configuration.checkpoint_words(path, checkpoint, data, words), checkpoint["class_path"]

    def _from_start(self, path: Path, words: list[str]) -> tuple[list[str], str]:
        """What the checkpoint that a run begins with says of the model, as words of a command; and its class."""
        self.checkpoint = path
        checkpoint = read_checkpoint(path)
        return configuration.checkpoint_words(path, checkpoint, {}, words), checkpoint["class_path"]

    def _folder(self, verb: str, output: str | None, config: str | None, checkpoint: str | None) -> Path | None:
        """The run's folder as far as it is known before it is claimed."""
        if output is not None:
            return Path(output)
        if checkpoint not in (None, "last", "best"):
            # Training from anything but a run's last checkpoint is another run.
            return Path(checkpoint).parent if verb != "fit" or Path(checkpoint).name == "last.ckpt" else None
        if verb != "fit" and config is not None and Path(config).name == "config.yaml":
            return Path(config).parent
        return folders.latest(self.family) if checkpoint is not None else None

    def _parse_ckpt_path(self) -> None:
        """Done in :meth:`parse_arguments`: Lightning would let the checkpoint win over explicit values."""

    def before_instantiate_classes(self) -> None:
        """Claims the folder of a training run before anything slow is done."""
        trainer = self._get(self.config, "trainer")
        trainer.callbacks = plain(trainer.callbacks)
        if trainer.default_root_dir is not None:
            raise InputError("trainer.default_root_dir: name the folder with --output")
        endless = trainer.max_steps == -1 and not (trainer.max_epochs or trainer.max_time or trainer.fast_dev_run)
        if self.subcommand == "fit" and endless:
            was = configuration.longer(self.earlier, self.checkpoint)
            raise InputError(f"trainer.max_steps must be given: the number of gradient updates{was}")
        configuration.possible(trainer, self.subcommand or "")
        if self.subcommand == "fit" and not trainer.fast_dev_run:
            folder = folders.claim(self.folder, self.resume) if self.folder else folders.claim_next(self.family)
            self.folder = folder
            last = folder / "last.ckpt"
            if self.resume and self.checkpoint is None and not folders.rank():
                forget(folder / FOLDER, 0)  # of a run that was stopped just before its first checkpoint
            signals.on_stop(lambda: f"; --ckpt_path={last} goes on" if last.is_file() else "")
            if self.resume and self.earlier:
                now = yaml.safe_load(self._parser("fit").dump(self.config.fit, skip_unset=False))
                changes(self.earlier, now)
            self.config.fit.output = str(folder)
        if self.folder is not None:
            trainer.default_root_dir = str(self.folder)

    def instantiate_classes(self) -> None:
        """Says what a constructor objects to as it says it: jsonargparse reports it as a value of a wrong type."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            reason: BaseException | None = error
            while reason is not None and not isinstance(reason, InputError):
                reason = reason.__cause__
            raise reason or InputError(explain(str(error), "", self.parser)) from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds logger, checkpoints and progress to a training run; keeps the other verbs from writing."""
        given = self._get(self.config_init, "trainer")
        callbacks = [*listed(given.callbacks)]
        if self.subcommand == "fit":
            options.refuse(callbacks)  # before they see this, or any, exception
        if self.subcommand == "fit" and given.barebones:
            kwargs["log_every_n_steps"] = 0
        elif self.subcommand == "fit":
            if not given.fast_dev_run:
                if given.enable_checkpointing is not False:
                    callbacks += checkpoint_callbacks(Path(given.default_root_dir))
                if given.logger in (None, True):
                    kwargs["logger"] = Events(given.default_root_dir)
            if given.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in callbacks):
                callbacks.append(Progress())
            callbacks.append(Announcement())
            if self.start is not None:
                callbacks.append(Start(self.start))
        else:
            callbacks = [one for one in callbacks if not isinstance(one, Checkpoint | ProgressBar)]
            kwargs.update(logger=False, enable_checkpointing=False, enable_progress_bar=False)
            if self.subcommand == "predict":
                assert self.folder is not None
                folders.writable(self.folder)
                callbacks.append(PredictionWriter(self.folder / "predictions.safetensors"))
        plugins = [*listed(given.plugins), AtomicCheckpointIO()]
        if any(isinstance(plugin, CheckpointIO) for plugin in plugins[:-1]):
            raise InputError("trainer.plugins: checkpoints are written by this package, whole or not at all")
        with lightnings_objections("trainer: "):
            trainer: Trainer = super().instantiate_trainer(callbacks=callbacks, plugins=plugins, **kwargs)
        signals.attach(trainer)
        return trainer

    def fit(self, **arguments: Any) -> None:
        """Says where the run lies."""
        self._run(self.trainer.fit, **arguments)
        if self.folder is not None and self.trainer.is_global_zero:
            files = [
                name for name in ("last.ckpt", "best.ckpt", "weights.safetensors") if (self.folder / name).is_file()
            ]
            early = f" of {self.trainer.max_steps:,}: {reason}" if (reason := early_end(self.trainer)) else ""
            if self.trainer.global_step == self.reached:
                early += "; no update was made" + (
                    "" if early else f", trainer.max_steps is {self.trainer.max_steps:,}"
                )
            print(f"{self.folder}: update {self.trainer.global_step:,}{early}; {', '.join(files) or 'no checkpoint'}")

    @staticmethod
    def _run(function: Callable[..., Any], **arguments: Any) -> None:
        with lightnings_objections():
            function(**arguments)

    def validate(self, **arguments: Any) -> None:
        """Prints one line instead of Lightning's table."""
        self._run(self.trainer.validate, **{**arguments, "verbose": False})
        self._say()

    def test(self, **arguments: Any) -> None:
        """Prints one line instead of Lightning's table."""
        self._run(self.trainer.test, **{**arguments, "verbose": False})
        self._say()

    def predict(self, **arguments: Any) -> None:
        """Keeps nothing in memory but what is written."""
        self._run(self.trainer.predict, **{**arguments, "return_predictions": False})

    def _say(self) -> None:
        """Prints what was found, and writes it into the run's folder."""
        if self.trainer.is_global_zero:
            verdict.say(self.trainer, self.subcommand or "", self.folder, str(self._get(self.config, "ckpt_path")))
