"""Builds the base drafter (Goel et al., direct alignment): pre-train, distil, fine-tune; a room of the workshop.

cli.py                                                the commands
pretrain.py  <-  documents.py, packed_rows.py         a decoder learns next tokens of text
distill.py   <-  generation.py, dataset.py            targets answer prompts, and say what else they might have said
finetune.py  <-  mixture.py, projection.py,           the decoder learns to draft for them
                 block_efficiency.py
training.py  <-  checkpoints.py, schedule.py,         the one training loop of both
                 metrics_log.py
"""
