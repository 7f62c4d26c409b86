"""What people write for the arguments and methods of a Trainer, as they know them from Keras, PyTorch and scikit-learn,
and what to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from untorn.first_guesses import unknown_arguments, words

__all__ = ["ATTRIBUTE_GUESSES", "unknown_to_evaluate", "unknown_to_fit", "unknown_to_trainer"]

_ON_THE_TRAINER = (
    ("workers shards engine mode seed accumulate", "write Trainer({}=)"),
    ("num_workers n_workers n_jobs use_multiprocessing processes", "write Trainer(workers=)"),
    ("clip_grad_norm gradient_clip_val max_grad_norm clipnorm clip_norm", "write Trainer(clip_norm=)"),
    (
        "gradient_accumulation_steps accumulate_grad_batches accum_steps gradient_accumulation",
        "write Trainer(accumulate=)",
    ),
    ("optimizer optim", "write Trainer(optimizer=)"),
)
_EPOCHS = ("num_epochs n_epochs nb_epoch nb_epochs max_epochs epoch n_epoch", "write epochs=")
_BATCH_SIZE = ("bs batchsize batch per_device_train_batch_size train_batch_size", "write batch_size=")
_SAMPLE_WEIGHT = (
    "sample_weight sample_weights class_weight class_weights weights",
    "weights of examples are one more part of the data: docs/guide/data.md, Sample weights",
)
_RATE = (
    "lr learning_rate",
    "it belongs to the optimizer: Trainer(optimizer=SGD(0.1)); trainer.learning_rate changes it",
)

_FIT_GUESSES = words(
    *_ON_THE_TRAINER,
    _EPOCHS,
    _BATCH_SIZE,
    _RATE,
    _SAMPLE_WEIGHT,
    ("x y X Y inputs targets labels", "give all parts as one: fit((x, y), ...)"),
    (
        "validation_split val_split test_size",
        "choose the examples that are held out: fit((x[:n], y[:n]), validation_data=(x[n:], y[n:]))",
    ),
    (
        "val_data valid_data eval_data validation val valid eval_set val_dataset eval_dataset val_loader valid_loader "
        "val_dataloader val_dataloaders",
        "write validation_data=",
    ),
    ("train_data train_dataset train_loader train_dataloader train_dataloaders dataset loader", "write fit(data, ...)"),
    ("initial_epoch", "leave it out: a further fit() goes on counting, and so does one after load()"),
    ("steps max_steps num_steps", "write epochs=; steps_per_epoch= cuts an iterable of batches into epochs"),
    ("validation_batch_size validation_steps validation_freq", "validation takes all of validation_data, each epoch"),
    ("callback cb", "write callbacks=[...]"),
    ("verbosity progress progress_bar enable_progress_bar quiet silent show_progress", "write verbose="),
    ("ckpt_path checkpoint checkpoint_path save_dir output_dir", "write checkpoint_dir="),
    ("resume_from_checkpoint resume_from", "write checkpoint_dir= and resume=True, or call load(path) before"),
    ("metrics loss loss_fn criterion", "it belongs to the model, which Trainer gets: a function, TorchModel, JaxModel"),
    ("max_queue_size", "the workers read the data; an iterable is read ahead as far as 64 MB"),
)
_EVALUATE_GUESSES = words(
    _BATCH_SIZE,
    _SAMPLE_WEIGHT,
    ("x y X Y inputs targets labels", "give all parts as one: {function}((x, y))"),
    ("verbose", "it prints nothing"),
    ("steps callbacks return_dict", "leave it out; evaluate() returns a dict over all of the data"),
)
_TRAINER_GUESSES = words(
    _EPOCHS,
    _BATCH_SIZE,
    ("epochs batch_size shuffle drop_last validation_data callbacks verbose checkpoint_dir resume", "write fit({}=)"),
    ("num_workers n_workers n_jobs processes num_processes nproc world_size", "write workers="),
    ("num_nodes n_nodes", "write nodes="),
    ("num_shards n_shards", "write shards="),
    ("optim optimiser opt optimizers", "write optimizer="),
    ("lr learning_rate", "it belongs to the optimizer: optimizer=SGD(0.1)"),
    ("clip_grad_norm gradient_clip_val max_grad_norm clipnorm max_norm", "write clip_norm="),
    ("gradient_accumulation_steps accumulate_grad_batches accum_steps gradient_accumulation", "write accumulate="),
    ("threads num_threads n_threads", "write threads_per_worker="),
    ("random_state random_seed rng", "write seed="),
    ("staleness", "write max_staleness="),
    ("backend strategy", "write engine="),
    ("device devices accelerator gpus", "workers train on the CPU; leave it out"),
    (
        "loss loss_fn criterion metrics",
        "it belongs to the model: a function, untorn.torch.TorchModel, untorn.jax.JaxModel",
    ),
    ("data dataset train_data train_dataset train_loader", "write fit(data, ...)"),
    ("logger loggers log_dir enable_progress_bar progress_bar", "write fit(callbacks=[...]), or fit(verbose=)"),
    ("args config", "give each of them by its name"),
)
ATTRIBUTE_GUESSES = words(
    ("train train_model run learn start fit_generator fit_transform", "write fit(data, epochs=...)"),
    ("test score validate test_on_batch evaluate_generator", "write evaluate(data)"),
    ("forward infer predict_step predict_on_batch transform", "write predict(x)"),
    ("predict_proba predict_classes decision_function", "write predict(x), which returns the model's outputs"),
    ("partial_fit train_on_batch train_step training_step train_batch", "write step(batch)"),
    ("net network module_ backbone", "write module(), for a TorchModel"),
    ("cuda to cpu half", "workers train on the CPU; leave it out"),
    ("eval", "leave it out: evaluate() and predict() set the module's eval mode themselves"),
    ("weights state_dict get_weights parameters model_params coef_", "write params, a copy of the weights"),
    ("set_weights load_state_dict load_weights", "write trainer.params = weights"),
    ("save_weights save_model save_checkpoint dump", "write save(path)"),
    ("load_checkpoint restore load_model", "write load(path)"),
    ("lr", "write learning_rate"),
    (
        "history history_ losses loss metrics callback_metrics logged_metrics loss_curve_ log_history",
        "fit() returns the History",
    ),
    ("stop should_stop", "write stop_training = True"),
    ("add_callback callbacks", "write fit(callbacks=[...])"),
    ("log log_dict log_metrics", "the model returns metrics beside its loss; callbacks get them"),
    ("shutdown terminate join", "write close()"),
    ("num_workers n_workers", "write workers"),
    ("num_nodes n_nodes", "write nodes"),
    ("global_step", "write step"),
    ("current_epoch epochs n_epochs", "write epoch, the number of epochs since training began"),
    ("compile", "Trainer(model, optimizer=...) takes what compile() does in Keras"),
    ("summary", "print(trainer) shows what it trains"),
    ("subscribe", "write subscriber()"),
    ("scale", "write resize(workers)"),
)


def unknown_to_fit(more: Sequence[object], unknown: Iterable[str]) -> TypeError:
    """Return the error for arguments that fit() does not have."""
    instead = "give all parts of the data as one: fit((x, y), epochs=...); the others by name"
    return unknown_arguments("fit", more, unknown, guesses=_FIT_GUESSES, instead=instead)


def unknown_to_evaluate(function: str, more: Sequence[object], unknown: Iterable[str]) -> TypeError:
    """Return the error for arguments that evaluate() or predict() does not have."""
    guesses = {name: instead.replace("{function}", function) for name, instead in _EVALUATE_GUESSES.items()}
    instead = f"give all parts of the data as one: {function}((x, y)); batch_size= by name"
    return unknown_arguments(function, more, unknown, guesses=guesses, instead=instead)


def unknown_to_trainer(more: Sequence[object], unknown: Iterable[str]) -> TypeError:
    """Return the error for arguments that Trainer() does not have."""
    instead = "write Trainer(model, params, optimizer=...); all others by name"
    return unknown_arguments("Trainer", more, unknown, guesses=_TRAINER_GUESSES, instead=instead)
