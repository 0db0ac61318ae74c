"""The documentation builds without a warning, and shows the README and every public name."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import sb3_maesn

pytest.importorskip("pdoc")  # the extra docs


@pytest.fixture
def script(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", root / "scripts" / "make_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docs_build(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb3_maesn, "__doc__", sb3_maesn.__doc__)  # restored at the end
    assert script.main(["-o", str(tmp_path)]) == 0
    page = (tmp_path / "sb3_maesn.html").read_text(encoding="utf-8")
    assert "Your own task family" in page
    for name in sb3_maesn.__all__:
        assert f'id="{name}"' in page, name
    for module in script.MODULES:
        assert (tmp_path / f"{module.replace('.', '/')}.html").is_file(), module


def test_a_warning_is_an_error(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sb3_maesn, "__doc__", sb3_maesn.__doc__)
    broken = tmp_path / "broken.py"
    broken.write_text('def act(state: "Nowhere") -> None:\n    """Take a type that does not exist."""\n')
    monkeypatch.setattr(script, "MODULES", (str(broken),))
    with pytest.raises(UserWarning, match="Nowhere"):
        script.main(["-o", str(tmp_path / "docs")])


def test_links_lead_from_beside_the_package(script: ModuleType) -> None:
    readme = "[a](results/README.md) ![b](results/b.gif) [c](https://c.org) [d](#d)"
    assert script.front_page(readme) == "[a](../results/README.md) ![b](../results/b.gif) [c](https://c.org) [d](#d)"
