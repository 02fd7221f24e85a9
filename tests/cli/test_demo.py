"""The demonstration, shortened: what a newcomer sees first."""

from peft_smop.cli import demo


def test_the_demo_compares_four_methods_draws_them_and_goes_on_where_it_was(
    smop, tmp_path, monkeypatch
):
    monkeypatch.setattr(demo, "STEPS", 4)
    monkeypatch.setattr(demo, "EVERY", 2)
    code, out, err = smop("demo", "--seeds", 2, "-o", tmp_path / "demo")
    assert code == 0, err
    for name in demo.CANDIDATES:
        assert name in out
    assert "majority label" in out
    assert "no evidence" in out
    picture = tmp_path / "demo" / "comparison.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo" / "routes.png").read_bytes().startswith(b"\x89PNG")
    assert "routing is worth" in out or "routing costs" in out
    results = sorted(tmp_path.glob("demo/runs/*/result.json"))
    assert len(results) == 8
    times = [path.stat().st_mtime_ns for path in results]
    code, again, _ = smop("demo", "--seeds", 2, "-o", tmp_path / "demo")
    assert code == 0
    assert [path.stat().st_mtime_ns for path in results] == times
    assert again.splitlines()[:5] == out.splitlines()[:5]
