"""What the documents tell people to type works."""

import re
import shlex
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer

from answering import save_adapter

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_s_python_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    from peft_smop.embedded import MODEL_DIR

    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    assert code.startswith("from peft import get_peft_model")
    assert "t5-base" in code
    save_adapter(tmp_path / "runs" / "tickets", 1)
    names: dict[str, object] = {}
    exec(code.replace("t5-base", str(MODEL_DIR)), names)
    assert "trainable params" in capsys.readouterr().out
    assert (tmp_path / "my-adapter" / "adapter_model.safetensors").is_file()


def test_the_predictor_s_python_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("tickets", "mood")):
        save_adapter(tmp_path / "runs" / name, seed)
    exec("\n".join(blocks(ROOT / "docs" / "predictor.md", "python")), {})
    assert "('tickets', " in capsys.readouterr().out


def test_the_python_of_exports_runs(tmp_path, monkeypatch, capsys, saved_models):
    """Against a server that answers as vLLM's completions endpoint does."""
    pytest.importorskip("onnxruntime", reason="pip install 'peft-smop[export]'")
    pytest.importorskip("openai", reason="the client is the openai package's")
    import jaxtyping
    from endpoint import completions_endpoint
    from exporting import save

    from peft_smop.export import export

    monkeypatch.chdir(tmp_path)
    export(save(saved_models["llama"], tmp_path / "a"), tmp_path / "exported", format="vllm")
    with jaxtyping_off(jaxtyping.config):
        export(save(saved_models["bert"], tmp_path / "b"), tmp_path / "graphs", format="onnx")
    client, reader = blocks(ROOT / "docs" / "export.md", "python")
    with completions_endpoint(" written") as (place, requests):
        code = client.replace("http://localhost:8000/v1", place)
        assert code != client
        exec(code + "\nclient.close()", {})
    assert " written" in capsys.readouterr().out
    assert requests[0][1]["model"] == "backbone"
    exec(reader, {})
    assert capsys.readouterr().out.startswith("[")


@contextmanager
def jaxtyping_off(config):
    """While a model is traced its sizes are symbols, which the check of shapes takes for no int."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def commands() -> list[str]:
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for line in "\n".join(blocks(path, "bash")).splitlines() + re.findall(
            r"`(smop [^`]+)`", text
        ):
            if line.strip().startswith("smop "):
                found.append(line.split("#")[0].strip())
    return sorted(set(found))


@pytest.mark.parametrize("line", commands())
def test_a_command_line_in_the_documents_is_understood(line):
    from peft_smop.cli.app import app

    group = typer.main.get_command(app)
    name, *arguments = shlex.split(line)[1:]
    if name == "--help":
        return
    command = group.commands[name]
    needs = [p for p in command.params if p.required and p.param_type_name == "option"]
    for parameter in needs:  # a fragment may leave out what is said elsewhere
        if not set(parameter.opts) & set(arguments):
            arguments += [parameter.opts[0], "cb"]
    if any(p.required and p.param_type_name == "argument" for p in command.params) and not [
        a for a in arguments if not a.startswith("-")
    ]:
        arguments.append("somewhere")
    context = command.make_context(name, arguments)
    assert context.command is command


def test_links_between_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+?)\)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_changelog_knows_the_version():
    import peft_smop

    assert f"## {peft_smop.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
