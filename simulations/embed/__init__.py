"""Training of the embedded default models from the running Python's own standard library.

Nothing is downloaded and nothing is licensed anew: the text is the standard library's sources, the tokenizers are
trained on that text, and four small Llama-type models (three targets, one drafter) are trained on the tokens.

    corpus.py  <-  sources.py                     which text belongs to whom
    prompts.py                                    what each user would type
    vocabularies.py                               the three tokenizers
    shapes.py                                     the four models and how long each is trained, in one table
    pretrain.py  <-  batches.py                   the training, on the loop of export/align
    run.py  <-  deepen.py, record.py              one model, from the corpus to its folder
    __main__.py                                   the command line

It does not know how the models are later exported, served or adapted.
"""
