"""The catalogue of bounds: one file a paper, one row here. Nothing in this folder imports torch."""

from genbound.bounds.arora2018compression import ARORA2018
from genbound.bounds.bartlett2017spectral import BARTLETT2017
from genbound.bounds.base import Bound, BoundValue, Evidence
from genbound.bounds.certificates import PAC_BAYES_CERTIFICATE
from genbound.bounds.clopper1934heldout import TEST_SET_BOUND
from genbound.bounds.distance import (
    DISTANCE_FROBENIUS,
    DISTANCE_MARS,
    DISTANCE_MARS_MATRIX,
    DISTANCE_SPECTRAL,
    DISTANCE_SPECTRAL_MATRIX,
    DISTANCE_TWO_ONE,
    DISTANCE_TWO_ONE_MATRIX,
)
from genbound.bounds.fisher_rao import FISHER_RAO
from genbound.bounds.gouk2021distance import GOUK2021
from genbound.bounds.jiang2020fantastic import (
    JIANG2020_FLATNESS,
    JIANG2020_MAGNITUDE,
    JIANG2020_SHARPNESS,
    JIANG2020_SHARPNESS_MAGNITUDE,
)
from genbound.bounds.ju2022hessian import HESSIAN_DISTANCE, NOISY_LABEL_DISTANCE, TRACE_DISTANCE
from genbound.bounds.langford2005occam import COMPRESSION_CERTIFICATE
from genbound.bounds.li2021improved import LI2021
from genbound.bounds.long2020sharp import LONG2020
from genbound.bounds.neyshabur2018pacbayes import NEYSHABUR2018
from genbound.bounds.path_norm import PATH_NORM
from genbound.bounds.petzka2021flatness import PETZKA2021
from genbound.bounds.pitas2017pacbayes import PITAS2017
from genbound.bounds.spectra import MARTIN2021_ALPHA, STABLE_RANK
from genbound.bounds.zhang2024noise import ZHANG2024

BOUNDS: dict[str, Bound] = {
    bound.name: bound
    for bound in (
        HESSIAN_DISTANCE,
        TRACE_DISTANCE,
        ZHANG2024,
        NOISY_LABEL_DISTANCE,
        PITAS2017,
        ARORA2018,
        LONG2020,
        GOUK2021,
        LI2021,
        NEYSHABUR2018,
        BARTLETT2017,
        JIANG2020_FLATNESS,
        JIANG2020_MAGNITUDE,
        JIANG2020_SHARPNESS,
        JIANG2020_SHARPNESS_MAGNITUDE,
        PATH_NORM,
        FISHER_RAO,
        PETZKA2021,
        PAC_BAYES_CERTIFICATE,
        COMPRESSION_CERTIFICATE,
        TEST_SET_BOUND,
        DISTANCE_FROBENIUS,
        DISTANCE_SPECTRAL,
        DISTANCE_MARS,
        DISTANCE_TWO_ONE,
        DISTANCE_SPECTRAL_MATRIX,
        DISTANCE_MARS_MATRIX,
        DISTANCE_TWO_ONE_MATRIX,
        STABLE_RANK,
        MARTIN2021_ALPHA,
    )
}

__all__ = ["BOUNDS", "Bound", "BoundValue", "Evidence"]
