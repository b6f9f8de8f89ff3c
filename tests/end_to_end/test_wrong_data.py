"""A module with a DataModule that gives something else: one sentence, before anything is read."""

import pytest

MODULES = {
    "CausalPretraining": ("texts", "TextDataModule"),
    "SupervisedFinetuning": ("conversations", "InstructionDataModule"),
    "RewardModeling": ("preference pairs", "PreferenceDataModule"),
    "PPO": ("prompts", "PromptDataModule"),
}
GIVEN = {right: kind for kind, right in MODULES.values()}
PACKED = ("texts", "conversations")
WRONG = [
    (module, data)
    for module, (kind, _) in MODULES.items()
    for data, given in GIVEN.items()
    if given != kind and not {given, kind}.issubset(PACKED)
]
REWARDS = "--model.rewards={short: {function: {class_path: llm_lightning.rewards.Length, init_args: {target: 8}}}}"


def arguments(module: str, data: str, network) -> list[str]:
    rewards = [REWARDS] if module == "PPO" else []
    model = [f"--model={module}", f"--model.backbone.path={network}", *rewards]
    return [*model, f"--data={data}", "--data.path=texts.jsonl", "--trainer.accelerator=cpu", "--trainer.max_steps=1"]


def sentence(module: str, given: str, data: str, flag: str = "--data") -> str:
    kind, right = MODULES[module]
    return f"llm-lightning: error: {module} learns from {kind}, and {data} gives {given}: {flag} {right}."


@pytest.mark.parametrize(("module", "data"), WRONG)
def test_a_wrong_pair_names_the_right_datamodule(run, network, module, data):
    code, output = run("fit", *arguments(module, data, network))
    assert code == 2, output
    assert output.strip().splitlines()[-1] == sentence(module, GIVEN[data], data)


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_commands_say_it_too(run, network, verb):
    code, output = run(verb, *arguments("RewardModeling", "InstructionDataModule", network))
    assert code == 2, output
    wanted = sentence("RewardModeling", "conversations", "InstructionDataModule")
    assert output.strip().splitlines()[-1] == wanted


def test_data_around_data_counts_as_what_is_in_it(run, network, folder):
    (folder / "synthetic.yaml").write_text(
        "data:\n  class_path: SyntheticDataModule\n  init_args:\n"
        "    data: {class_path: PreferenceDataModule, init_args: {path: texts.jsonl}}\n    generators: {}\n"
    )
    model = [f"--model.backbone.path={network}", "--trainer.accelerator=cpu"]
    code, output = run("fit", "--model=SupervisedFinetuning", *model, "--config=synthetic.yaml")
    assert code == 2, output
    wanted = sentence("SupervisedFinetuning", "preference pairs", "SyntheticDataModule", "--data.data")
    assert output.strip().splitlines()[-1] == wanted


def test_a_language_model_goes_on_from_prompts_too(run, network, folder):
    (folder / "prompts.jsonl").write_text('{"prompt": "What is"}\n{"prompt": "A function"}\n')
    model = ["--model=CausalPretraining", f"--model.backbone.path={network}", "--model.generation={max_new_tokens: 3}"]
    data = ["--data=PromptDataModule", "--data.path=prompts.jsonl", "--data.val_share=0.5", "--data.chat=false"]
    code, output = run("predict", *model, *data, "--trainer.accelerator=cpu", "--trainer.default_root_dir=run")
    assert code == 0, output
    assert len((folder / "run" / "predictions.jsonl").read_text().splitlines()) == 1
