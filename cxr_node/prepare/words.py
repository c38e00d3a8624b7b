"""Words of headers, in the languages in which hospitals write them: body parts, views, species, processed images.

All patterns are for texts as `header.folded` gives them: in capitals, without accents; "." stands for a letter that was lost.
"""

from __future__ import annotations

import itertools
import re

_BODY_PARTS = """
ABDOMEN ABDOMENPELVIS ACJOINT ADRENAL ANKLE ANUS APPENDIX ARM AXILLA BACK BLADDER BRAIN BREAST BUTTOCK CALCANEUS CALF CAROTID
CEREBELLUM CERVIX CHEEK CLAVICLE COCCYX COLON CORNEA CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE
FEMUR FIBULA FINGER FOOT FOREARM FOREFOOT GALLBLADDER HAND HEAD HEADNECK HEART HEEL HIP HUMERUS IAC ILEUM ILIUM INTESTINE JAW
JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LOWERLEG LOWERLIMB LSPINE LSSPINE LUMBAR LUMBARSPINE MANDIBLE MASTOID MAXILLA MOUTH
NASALBONE NECK NOSE OPTICCANAL ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PELVIC PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM
SACRUM SCALP SCAPULA SCLERA SCOLIOSIS SCROTUM SHOULDER SIJOINT SINUS SINUSES SKULL SPINE SPLEEN SSPINE STERNUM STOMACH
SUBMANDIBULAR TARSUS TEETH TESTIS THIGH THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TOOTH TSPINE ULNA UPPERARM
UPPERLIMB URETER URETHRA UTERUS VAGINA VERTEBRA VULVA WRIST ZYGOMA
"""
OTHER_PARTS = frozenset(_BODY_PARTS.split())
"""Defined terms other than chest (PS3.16 annex L) and their plain words. Other values say nothing: then the picture decides."""

CHEST = re.compile(r"^(?!.*(?:SPINE|LUMBAR|VERTEBRA)).*(?:CHEST|THORA[XC]|TORAX|LUNG|PULMO|\bTHX\b|\bRIBS?\b|\bCXR\b)")

FRONTAL = re.compile(
    r"\b(?:P\.?A|A\.?P)\b|FRONTAL|POSTERO.?ANTERIOR|ANTERO.?POSTERIOR|\bLORDOTIC\b|\bFACE\b|\bFRENTE\b|DORSO.?VENTRAL|VENTRO.?DORSAL"
    r"|\bVOORACHTER|\bPRZOD|ПРЯМА|正面|正位|後前|前後|정면"
)
OBLIQUE = re.compile(
    r"\b(?:LLO|RLO|LAO|RAO|LPO|RPO|OBL)\b|OBLIQ|OBLIC|\bOBLIK|SCHR.?G|SKOSN|\bSIKM|\bFERDE\b|КОСАЯ|КОСОИ|斜位|사위"
)
LATERAL = re.compile(
    r"\b(?:LL|RL|LLD|RLD)\b|\b[LR]{0,2}LAT(?:DEC)?\b|(?<!BI)(?<!UNI)(?<!BI.)LAT.?RAL(?!I[TZ]|IS[AE])|AXIAL|DECUB|SAGIT|TANGEN|SWIMMER"
    r"|PROFI[EI]?L|PERFIL|SEITL|SEITE|\bSEIT\b|ZIJDEL|BOCZN|\bBO.N[IY]\b|\bBOCNA\b|\bSIDO|\bSIDEBILD|\bSIDBILD|\bOLDALIR|\bSIVUKUV"
    r"|БОКОВ|ПЛАГ|ΠΛΑΓΙ|側面|側位|侧面|侧位|측면"
)
"""Of a view or an examination's name. BOCNI, PERFIL and so on are "lateral" in several languages; BILATERAL is not."""
VIEW_FROM_THE_SIDE = re.compile(r"^(?:LATER|SIDE|SIDA|BOK|SIVU|YAN|ZIJ|DWARS|측)\b")
"""Of a view alone: in a longer text these words mean something else."""

HUMAN = re.compile(
    r"HOMO|HUMAN|HUMAIN|\bMAN\b|PERSON|MENSCH|\bMENS\b|\bUOMO\b|\bHOMBRE\b|MENNESKE|MANNISKA|CZLOWIEK|CLOVEK|IHMINEN|INSAN|ЧЕЛОВЕК"
    r"|^人|ヒト|사람|인간"
)
NO_SPECIES = re.compile(r"^(?:N/?A|NONE|UNKNOWN|UNSPECIFIED|UNDEFINED|OTHER|NOT .*|ADULT|CHILD|INFANT|[\W\d_]*)$")
"""What says of a species that it isn't said."""
ANIMAL = re.compile(
    r"\b(?:CANINE|FELINE|EQUINE|BOVINE|OVINE|PORCINE|VETERINAR\w*|DOG|HORSE|RABBIT|FERRET)\b"
    r"|^CATS?$|\bCATS? (?:THORAX|ABDOMEN|PELVIS|SKULL|LIMB|VD|DV)\b"
)
"""CAT alone is a category, or a scanner."""

BONE_OR_SOFT_TISSUE = re.compile(
    r"(?:BONE|RIB)S?.{0,3}SUPPRES|SUPPRES\w*.{0,4}(?:BONE|RIB)|(?:BONE|RIB)S?.{0,3}(?:SHADOW.{0,3})?(?:FREE|REMOV|ELIMINAT)"
    r"|SOFT.?TISSUE.{0,3}(?:IMAGE|VIEW|ONLY|SELECT)|SOFT.?TISSUE$|^SOFT.?TISSUE(?! NECK)|BONE.?(?:IMAGE|VIEW|ONLY|SELECT|ENHANC)"
    r"|ENERGY.{0,3}SUBTRACT|DUAL.?ENERGY.*(?:BONE|SOFT)|(?:BONE|SOFT).*DUAL.?ENERGY|\bDES?\b.(?:BONE|SOFT)|\bDES\b.*(?:BONE|SOFT)"
    r"|CLEARREAD|SOFTVIEW|^BONES?$|KNOCHEN.?(?:SUPPR|BILD|FREI)|OHNE KNOCHEN|WEICHTEIL.?BILD|WEICHTEILE?$|^WEICHTEIL"
    r"|S[UO]P+R?ES\w*.{0,5}\bOS+[EO]|SUPRESI.N.{0,4}HUESO|^TISSUS? MOUS?|TISSUS? MOUS?$|(?:TEJIDOS|PARTES) BLAND[AO]S$"
    r"|TESSUTI MOLLI$|PARTIES MOLLES$|PARTES MOLES$|BOTONDERDRUK|BENSUPPR|骨抑制|骨除去|骨減弱|软组织像"
)
"""Of a description of the image."""
BONE_OR_SOFT_TISSUE_TYPE = re.compile(r"BONE|SOFT|TISSUE|SUPPRES|SUBTRACT|ENERGY.?SUB|\bRIB|\bDES\b")
"""Of a value of ImageType after the second (PS3.3 C.8.11.1.1.1)."""
TOMOSYNTHESIS = re.compile("TOMOSYNT|VOLUMERAD")
"""Of a value of ImageType after the second, and of a description of a derived image: a slice of many exposures."""
OTHERWISE_PROCESSED = re.compile(
    r"TEMPORAL.{0,3}SUBTRACT|DELTAVIEW|(?:TUBE|LINE|CATHETER)S?.{0,4}(?:ENHANC|VISUALI[SZ])|\bCOMPANION\b"
)
"""Of a description, and of a value of ImageType after the second: copies that software made beside the radiograph."""


def names_another_part(text: str) -> bool:
    """Whether a body part, in capitals, is or contains a defined term that is no chest, also written apart or in the plural."""
    if re.search("SPINE|LUMBAR|VERTEBRA", text):
        return True
    words = re.findall(r"[A-Z]+", text)
    joined = [one + other for one, other in itertools.pairwise(words)]
    return any(word in OTHER_PARTS or (word.endswith("S") and word[:-1] in OTHER_PARTS) for word in (*words, *joined))
