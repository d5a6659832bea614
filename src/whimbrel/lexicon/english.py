"""What English questions are made of beside their subject.

tantivy's English list has 33 words and none of a question's own. These are the closed classes: articles, pronouns,
question words, auxiliaries, and the most common conjunctions and prepositions. They are left out of queries only, and
only where a query has other words: a document keeps them, so that "to be or not to be" is found.

nDCG@10 of whole documents, with tantivy's list / with this: Cranfield .393 .400, CACM .486 .495, NFCorpus .325 .330,
NQ .933 .937, ClapNQ .954 .959, an API's documentation .720 .764.
"""

from __future__ import annotations

import re

STOP_WORDS = """
    a an the this that these those such same some any
    i me my mine myself we us our ours ourselves you your yours yourself he him his himself she her hers herself
    it its itself they them their theirs themselves there then
    what which who whom whose when where why how
    am is are was were be been being do does did doing have has had having will would shall should can could may might
    must
    and or but if than so as not no
    of at by for with in into on to from about
""".split()  # noqa: SIM905

_CONTRACTED = re.compile(r"(?<=[a-z])['’](?:s|d|m|ll|re|ve)\b|\b[a-z]{1,7}n['’]t\b", re.IGNORECASE)


def without_contractions(query: str) -> str:
    """`what's` becomes `what`, and `don't` nothing: taken apart at the apostrophe, they leave letters to search for."""
    return _CONTRACTED.sub(" ", query)
