"""The cases of every family by name; a name begins with its family's."""

from __future__ import annotations

from family_cases import CASES as LLAMA_SHAPED
from gemma_cases import GEMMA_CASES
from gpt_cases import GPT_CASES
from phi_cases import PHI_CASES

CASES = LLAMA_SHAPED | GEMMA_CASES | PHI_CASES | GPT_CASES
