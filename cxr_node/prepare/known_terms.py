"""Header terms that may be quoted. Any other value may contain a patient's name, and is never shown."""

from __future__ import annotations

import re

from cxr_node.prepare.words import OTHER_PARTS

_MODALITY_TERMS = """
AR ASMT AU BDUS BI BMD CD CF CP CR CS CT DD DF DG DM DOC DS DX EC ECG EEG EMG EOG EPS ES FA FID FS GM HC HD IO IOL IVOCT
IVUS KER KO LEN LP LS M3D MA MG MR MS NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP
RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SC SEG SM SMR SR SRF ST STAIN TEXTUREMAP TG US
VA VF VL XA XAPROTOCOL XC
"""
MODALITIES = frozenset(_MODALITY_TERMS.split())
"""Defined terms of Modality, those that have been retired too (PS3.3 section C.7.3.1.1.1)."""

_VIEW_TERMS = """
LL RL LLD RLD LLO RLO LAO RAO LPO RPO OBL LAT LLAT RLAT LRLAT RLLAT L R LEFT RIGHT UPRIGHT ERECT SUPINE PRONE STANDING
SITTING LATERAL LATERALE LATERO OBLIQUE OBLIQUA SCHRAEG SCHRAG AXIAL DECUBITUS DECUB SAGITTAL TANGENTIAL PROFIL PROFILE
PERFIL SEITLICH SEITE SEIT SEITL ZIJDELINGS BOCZNE BOCZNY SIDO SIDEBILD SIDE PROFIEL PROFILO SWIMMER
ANTERIOR POSTERIOR ANTERO POSTERO CRANIO CAUDAL
CRANIOCAUDAL VIEW
"""
_VIEWS = frozenset(_VIEW_TERMS.split())
_PART_TERMS = """
THORACO THORACIC THORACOLUMBAR LUMBOSACRAL CERVICO CERVICAL LUMBAR LUMBO SACRAL LEFT RIGHT UPPER LOWER WHOLE ENTIRE
JOINT BONE VERTEBRAL COLUMN VERTEBRAE AND
"""
_PARTS = OTHER_PARTS | frozenset(_PART_TERMS.split())
_NOTHING = "another one"


def shown_modality(value: str) -> str:
    """A modality, in capitals, if it is a defined term."""
    return value if value in MODALITIES else _NOTHING


def shown_part(value: str) -> str:
    """Of a body part, in capitals, the words that are terms of body parts."""
    return _known_words(value, _PARTS)


def shown_view(value: str) -> str:
    """Of a view, in capitals, the words that are terms of views."""
    return _known_words(value, _VIEWS)


def _known_words(value: str, known: frozenset[str]) -> str:
    words = [
        word for word in re.findall(r"[^\W\d_]+", value[:256]) if word in known or (word.endswith("S") and word[:-1] in known)
    ]
    return " ".join(words[:4]) or _NOTHING
