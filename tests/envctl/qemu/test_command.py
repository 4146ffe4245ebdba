"""What QEMU is told: words of others stay values, and what a machine is stands in its folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envctl.drivers.qemu.command import OPTIONS, Places, mac_of, qemu_command
from envctl.drivers.qemu.machine import Machine, decode, encode, parse_ref, ref_of

ENVIRONMENT = "01hzzzzzzzzzzzzzzzzzzzzzzz"
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def machine(**fields: object) -> Machine:
    values: dict[str, object] = {
        "environment": ENVIRONMENT,
        "generation": 2,
        "name": "dev",
        "description": "",
        "source": "/images/debian.img",
        "source_stamp": "1:2",
        "uuid": UUID,
        "seed_url": "https://console.example/seed/T/",
    }
    return Machine(**(values | fields))  # type: ignore[arg-type]  # fields by name


def command(given: Machine, bridge: str = "", folder: str = "/m") -> list[str]:
    return qemu_command(given, Places(folder), program="qemu", accelerator="tcg", bridge=bridge)


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_a_machine_is_told_its_seed_by_smbios() -> None:
    words = command(machine())
    assert (
        option(words, "-smbios") == f"type=1,uuid={UUID},serial=ds=nocloud;dsmode=net;s=https://console.example/seed/T/"
    )
    assert option(words, "-pidfile") == "/m/pid"
    assert option(words, "-vnc") == "unix:/m/vnc"
    assert "spawn=deny" in option(words, "-sandbox")
    assert option(words, "-netdev") == "user,id=net0"
    assert "-kernel" not in words


def test_options_of_a_template() -> None:
    direct = command(machine(options={"kernel": "/k", "initrd": "/i", "append": "root=/dev/vda rw", "disk": "nvme"}))
    assert (option(direct, "-kernel"), option(direct, "-initrd")) == ("/k", "/i")
    assert option(direct, "-append") == "root=/dev/vda rw"
    assert "nvme,drive=disk0,serial=disk0" in direct
    bridged = command(machine(), bridge="br0")
    assert option(bridged, "-netdev") == "bridge,id=net0,br=br0"
    assert "-sandbox" not in bridged, "a bridge is reached by a helper program"
    assert "-netdev" not in command(machine(options={"network": "none"}), bridge="br0")
    for wrong in ({"disk": "ide"}, {"network": "tap"}, {"network": "bridge"}):
        with pytest.raises(ValueError):
            command(machine(options=wrong))


@given(name=texts, seed=texts, folder=texts, model=texts)
def test_words_of_others_stay_values(name: str, seed: str, folder: str, model: str) -> None:
    """Single commas separate what we wrote; doubled ones are part of a value. So the number of fields never changes."""

    def fields(words: list[str]) -> list[int]:
        plain = words.index("-pidfile") + 1  # a path and nothing else
        return [word.replace(",,", "").count(",") for place, word in enumerate(words) if place != plain]

    odd = command(machine(name=name, seed_url="https://c/" + seed, options={"cpu": model}), folder="/" + folder)
    assert fields(odd) == fields(command(machine()))
    plain = command(machine())
    assert len(odd) == len(plain)
    assert all(mine == theirs for mine, theirs in zip(odd, plain, strict=True) if theirs.startswith("-"))


def test_every_option_that_is_described_is_used() -> None:
    words = " ".join(
        command(machine(options={name: f"<{name}>" for name in OPTIONS if name not in ("disk", "network")}))
    )
    unused = {name for name in OPTIONS if f"<{name}>" not in words}
    # `firmware` is for machines that boot from their disk; `full` concerns the clone.
    assert unused == {"disk", "network", "firmware", "full"}
    assert "<f>" in " ".join(command(machine(options={"firmware": "<f>"})))


def test_an_address_of_the_card_stays() -> None:
    assert mac_of(UUID) == "52:54:00:28:95:0e"


@given(texts, texts, st.dictionaries(texts, texts, max_size=3), st.integers(0, 1 << 40))
def test_a_record_is_read_back_as_it_was(name: str, description: str, options: dict[str, str], number: int) -> None:
    there = machine(name=name, description=description, options=options, disk_gib=number)
    assert decode(encode(there)) == there


@given(
    st.binary(max_size=300)
    | st.sampled_from([b'{"format": 1}', b'{"format": 1, "x": 1}', b"[]", b"1", b'{"format": 2}'])
)
def test_a_damaged_record_is_named_as_such(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode(text)


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_record_that_was_cut_is_damaged(cut: int) -> None:
    text = encode(machine())
    with pytest.raises(ValueError):
        decode(text[: min(cut, len(text) - 2)])


def test_folders_names_say_whose_machine_it_is() -> None:
    ref = ref_of(ENVIRONMENT, 7)
    assert parse_ref(ref) == (f"env-{ENVIRONMENT}", 7)
    for other in (
        "lost+found",
        "env-x.1",
        f"env-{ENVIRONMENT}",
        f"env-{ENVIRONMENT}.01",
        f"../env-{ENVIRONMENT}.1",
        f"{ref}\n",
    ):
        assert parse_ref(other) is None
