"""Settings come from the environment, with every fault reported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from services.common.settings import CommonSettings, Secret, SettingsError, load, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShopSettings(CommonSettings):
    """Settings of a service that does not exist."""

    name: str = setting(text="Name.")
    port: int = setting(80, text="Port.", minimum=1, maximum=65535)
    ratio: float = setting(0.5, text="Ratio.")
    is_open: bool = setting(False, text="Open.")
    listen: tuple[str, ...] = setting(("a",), text="Addresses.")
    key: Secret | None = setting(None, text="Key.")


REQUIRED = {"WEIMQ_CLUSTER_TOKEN": "0123456789abcdef", "SHOP_NAME": "corner"}


def test_values_have_the_type_of_their_field() -> None:
    loaded = load(
        ShopSettings,
        {**REQUIRED, "SHOP_PORT": "81", "SHOP_RATIO": "2", "SHOP_IS_OPEN": "yes", "SHOP_LISTEN": "x:1, unix:/y"},
    )
    assert (loaded.name, loaded.port, loaded.ratio, loaded.is_open) == ("corner", 81, 2.0, True)
    assert loaded.listen == ("x:1", "unix:/y")
    assert loaded.cluster_token.reveal() == "0123456789abcdef"
    assert loaded.key is None


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a secret of the right length\n")
    loaded = load(ShopSettings, {"SHOP_NAME": "x", "WEIMQ_CLUSTER_TOKEN_FILE": str(path), "SHOP_KEY": "hidden"})
    assert loaded.cluster_token.reveal() == "a secret of the right length"
    assert loaded.key is not None
    assert loaded.key.reveal() == "hidden"
    assert "secret of" not in repr(loaded)
    assert "hidden" not in repr(loaded)


def test_all_faults_are_reported_together() -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            ShopSettings,
            {
                "WEIMQ_CLUSTER_TOKEN": "short",
                "WEIMQ_LOG_LEVEL": "LOUD",
                "SHOP_PORT": "0",
                "SHOP_RATIO": "much",
                "SHOP_IS_OPEN": "perhaps",
                "SHOP_KEY_FILE": "/nonexistent/file",
                "SHOP_PROT": "81",
                "OTHER": "ignored",
            },
        )
    named = {fault.split(":")[0].split(" ")[0] for fault in caught.value.faults}
    assert named == {
        "WEIMQ_CLUSTER_TOKEN", "WEIMQ_LOG_LEVEL", "SHOP_NAME", "SHOP_PORT", "SHOP_RATIO", "SHOP_IS_OPEN",
        "SHOP_KEY_FILE", "SHOP_PROT",
    }  # fmt: skip
    assert "short" not in str(caught.value)
