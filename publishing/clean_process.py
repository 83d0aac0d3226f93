"""Load a published folder as somebody without this package does, in every way that it offers, and use it.

Run as a program in a process of its own, with `groundup` made impossible to import:
    python -I clean_process.py QUESTION.json ANSWER.safetensors
It imports nothing of this package. Codes of exit: 0 and an answer, or 1 and the reason as the last line of stderr.
"""

import json
import sys

sys.modules["groundup"] = None  # type: ignore[assignment]  # from here on importing it fails


def main(question_path: str, answer_path: str) -> None:
    """Run the code on the card, load the model by every other Auto class it names, and answer.

    The answer is the logits and the greedy text of the model that the card's code made, in fp32 on the CPU.
    """
    import torch
    import transformers
    from safetensors.torch import save_file

    with open(question_path, encoding="utf-8") as file:
        question = json.load(file)
    for name in question["other_classes"]:
        getattr(transformers, name).from_pretrained(question["place"], trust_remote_code=True)
    made: dict = {}
    exec(compile(question["code"], "the code on the card", "exec"), made)
    tokenizer, model = made["tokenizer"], made["model"].float().cpu().eval()
    if tokenizer.encode(question["text"]) != question["text_ids"]:
        sys.exit("the tokenizer gives other ids")
    ids = torch.tensor([question["ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        asked = inputs | ({"decoder_input_ids": ids} if question["is_encoder_decoder"] else {})
        output = model(**asked)
    answer = {"logits": output["logits"] if "logits" in output else output[0]}
    if question["new_tokens"]:
        answer["written"] = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=question["new_tokens"],
            pad_token_id=tokenizer.pad_token_id,
        )
    save_file({name: value.contiguous() for name, value in answer.items()}, answer_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
