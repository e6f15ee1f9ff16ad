"""Certificates in files are judged before anything is done with them, with every reason and without a key in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible.module_utils.slipway.certificates import Pair, covers, fingerprint, is_issued_by, same_authority
from ansible.module_utils.slipway.errors import SlipwayError
from cryptography.hazmat.primitives import serialization

from .authorities import NOW, make, write

ROOT = make("Root", authority=True)


def test_a_good_pair(tmp_path: Path) -> None:
    leaf = make("leaf", ROOT, ("ml.example.org", "*.ml.example.org"))
    pair = Pair.load(*write(tmp_path, "x", leaf, ROOT))
    assert pair.problems(NOW, ["ml.example.org", "argocd.ml.example.org"]) == []
    assert pair.soon(NOW) == []
    assert leaf.key_pem not in repr(pair) and "PRIVATE" not in repr(pair)


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("a.x.org", True),
        ("A.x.org".lower(), True),
        ("x.org", False),
        ("a.b.x.org", False),
        ("y.org", True),
        ("*.x.org", True),
    ],
)
def test_wildcards_stand_for_one_label(name: str, covered: bool) -> None:
    assert covers(make("leaf", names=("*.x.org", "Y.org")).certificate, name) is covered


def test_files_that_are_no_pair(tmp_path: Path) -> None:
    leaf, other = make("leaf", ROOT), make("other", ROOT)
    certificate, key = write(tmp_path, "x", leaf)
    with pytest.raises(SlipwayError, match=r"none\.crt: No such file or directory; .*none\.key: No such file"):
        Pair.load(str(tmp_path / "none.crt"), str(tmp_path / "none.key"))
    with pytest.raises(
        SlipwayError, match=r"other\.key is not the key of the first certificate in .*x\.crt \(CN=leaf\)"
    ):
        Pair.load(certificate, write(tmp_path, "other", other)[1])
    with pytest.raises(SlipwayError, match=r"x\.key holds no certificate in PEM form"):
        Pair.load(key, key)
    with pytest.raises(SlipwayError, match=r"x\.crt holds no private key in PEM form"):
        Pair.load(certificate, certificate)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_text(leaf.key_as(serialization.BestAvailableEncryption(b"passphrase")))
    with pytest.raises(SlipwayError, match=r"encrypted\.key is encrypted"):
        Pair.load(certificate, str(encrypted))
    (tmp_path / "der.crt").write_bytes(leaf.certificate.public_bytes(serialization.Encoding.DER))
    with pytest.raises(SlipwayError, match=r"der\.crt"):
        Pair.load(str(tmp_path / "der.crt"), key)
    with pytest.raises(SlipwayError, match=r"CN=leaf is not issued by the certificate that follows it, CN=other"):
        Pair.load(*write(tmp_path, "wrong", leaf, other))


def test_times_and_names(tmp_path: Path) -> None:
    def problems(days: tuple[int, int], *names: str) -> list[str]:
        pair = Pair.load(*write(tmp_path, "x", make("leaf", ROOT, ("a.org",), days=days)))
        return pair.problems(NOW, names) + pair.soon(NOW)

    assert problems((-9, 90), "a.org") == []
    assert "CN=leaf expired on" in problems((-9, -1), "a.org")[0]
    assert "CN=leaf is valid only from" in problems((1, 90), "a.org")[0]
    assert "CN=leaf expires on" in problems((-9, 13), "a.org")[0]
    (wrong,) = problems((-9, 90), "b.org", "c.b.org")
    assert wrong.endswith("x.crt: it is for a.org, not for b.org, c.b.org")


def test_an_authority_must_be_able_to_issue_and_end_with_the_root(tmp_path: Path) -> None:
    middle = make("Middle", ROOT, authority=True)
    assert Pair.load(*write(tmp_path, "x", middle, ROOT)).problems(NOW, authority=True) == []
    assert Pair.load(*write(tmp_path, "x", ROOT)).problems(NOW, authority=True) == []
    (wrong,) = Pair.load(*write(tmp_path, "x", middle)).problems(NOW, authority=True)
    assert "CN=Middle, is no root: append those up to the root" in wrong
    (wrong,) = Pair.load(*write(tmp_path, "x", make("leaf"))).problems(NOW, authority=True)
    assert "CN=leaf may not issue certificates" in wrong


def test_a_renewed_authority_is_the_same_one() -> None:
    renewed, other, same_key = make("Root", key=ROOT.key), make("Root"), make("Another name", key=ROOT.key)
    assert same_authority(ROOT.certificate, renewed.certificate)
    assert not same_authority(ROOT.certificate, other.certificate)
    assert not same_authority(ROOT.certificate, same_key.certificate)
    leaf = make("leaf", ROOT)
    assert is_issued_by(leaf.certificate, renewed.certificate) and not is_issued_by(leaf.certificate, other.certificate)
    assert fingerprint(leaf.certificate).count(":") == 31
