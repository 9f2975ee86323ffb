"""The workshop: turns Hugging Face directories into graphs and bundles. Needs the extra ``[export]``."""
