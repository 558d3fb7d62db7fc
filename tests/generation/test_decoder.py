"""The cached forward pass against the model's own, token by token and several at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from transformers import Emu3ForCausalLM, Emu3TextConfig

from earl_cli.generation import decoder as decoder_module
from earl_cli.generation.decoder import Decoder

CONFIG = {
    "vocab_size": 90,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model(**changes: object) -> Emu3ForCausalLM:
    torch.manual_seed(0)
    return Emu3ForCausalLM(Emu3TextConfig(**(CONFIG | changes))).eval()


def full_forward(language: Emu3ForCausalLM, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return language.model(torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 6},
        {"num_key_value_heads": 1},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}},
    ],
    ids=["grouped", "every head its own", "one for all", "scaled rope"],
)
@pytest.mark.parametrize("cuts", [[5, 6, 7, 8, 9], [1, 3, 4, 9], [4, 9]], ids=str)
def test_hidden_states_are_the_models_own(changes: dict, cuts: list[int]) -> None:
    language = model(**changes)
    ids = torch.randint(3, 90, (3, 9)).tolist()
    decoder = Decoder(language, batch_size=3, capacity=9)
    with torch.inference_mode():
        for row in ids:
            hidden = decoder.prefill(row[: cuts[0]], 1)
            assert torch.allclose(hidden, full_forward(language, row)[cuts[0] - 1], atol=1e-5)
        for start, end in pairwise(cuts):
            hidden = decoder.step([row[start:end] for row in ids], [start - cuts[0]] * 3)
            expected = torch.stack([full_forward(language, row)[end - 1] for row in ids])
            assert torch.allclose(hidden, expected, atol=1e-5)


def test_sequences_of_different_lengths_and_growth() -> None:
    language = model()
    ids = torch.randint(3, 90, (3, 40)).tolist()
    given = done = [7, 2, 11]
    decoder = Decoder(language, batch_size=3, capacity=3)

    def own() -> list[int]:
        return [n - g for n, g in zip(done, given, strict=True)]

    with torch.inference_mode():
        for lane, row in enumerate(ids):
            decoder.prefill(row[: done[lane]], 1)
        for counts in ([1, 3, 2], [1, 1, 1], [2, 1, 5], [4, 4, 4]):
            hidden = decoder.step([row[n : n + c] for row, n, c in zip(ids, done, counts, strict=True)], own())
            done = [n + c for n, c in zip(done, counts, strict=True)]
            expected = torch.stack([full_forward(language, row)[n - 1] for row, n in zip(ids, done, strict=True)])
            assert torch.allclose(hidden, expected, atol=1e-5)
        decoder.keep([2, 0])
        hidden = decoder.step([ids[2][done[2] :][:1], ids[0][done[0] :][:1]], [own()[2], own()[0]])
        expected = torch.stack([full_forward(language, ids[lane])[done[lane]] for lane in (2, 0)])
        assert torch.allclose(hidden, expected, atol=1e-5)
    assert decoder.capacity >= 13


def test_the_attention_of_other_devices_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "_attention", decoder_module.plain_attention)
    language = model()
    ids = torch.randint(3, 90, (2, 12)).tolist()
    decoder = Decoder(language, batch_size=2, capacity=9)
    with torch.inference_mode():
        decoder.prefill(ids[0][:3], 1)
        decoder.prefill(ids[1][:5], 1)
        decoder.step([ids[0][3:5], ids[1][5:6]], [0, 0])
        hidden = decoder.step([ids[0][5:9], ids[1][6:9]], [2, 1])
    expected = torch.stack([full_forward(language, row)[8] for row in ids])
    assert torch.allclose(hidden, expected, atol=1e-5)


def test_copies_of_a_prompt_continue_apart() -> None:
    language = model()
    prompt, ends = [5, 6, 7, 8], [11, 12, 13]
    decoder = Decoder(language, batch_size=4, capacity=8)
    with torch.inference_mode():
        decoder.prefill([9, 9], 1)
        decoder.prefill(prompt, 3)
        hidden = decoder.step([[9], *([end] for end in ends)], [0, 0, 0, 0])
    for lane, end in enumerate(ends, 1):
        assert torch.allclose(hidden[lane], full_forward(language, [*prompt, end])[-1], atol=1e-5)


def test_bfloat16_follows_the_models_own_rounding() -> None:
    language = model().to(torch.bfloat16)
    ids = torch.randint(3, 90, (9,)).tolist()
    decoder = Decoder(language, batch_size=1, capacity=9)
    with torch.inference_mode():
        decoder.prefill(ids[:5], 1)
        hidden = decoder.step([ids[5:]], [0])
    assert hidden.dtype == torch.bfloat16
    assert torch.allclose(hidden[0], full_forward(language, ids)[-1], atol=0.1)


def test_train_mode_samples_without_dropout() -> None:
    language = model(attention_dropout=0.5)
    expected = full_forward(language, [4, 5, 6])[-1]
    with torch.inference_mode():
        hidden = Decoder(language.train(), batch_size=1, capacity=3).prefill([4, 5, 6], 1)
    assert torch.allclose(hidden, expected, atol=1e-5)
