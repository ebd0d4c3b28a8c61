"""Finds backdoor poisoning in image training sets by how the network decides."""

from jaxpoison.attacks.backdoor import standard_backdoor
from jaxpoison.attacks.label_consistent import label_consistent_backdoor
from jaxpoison.attacks.pgd import PGD, perturbed, projected_gradient_ascent
from jaxpoison.attacks.poisoned import PoisonedSplits
from jaxpoison.attacks.triggers import AmplitudePattern, Sticker
from jaxpoison.attributions import (
    LRP,
    Attribution,
    Explanation,
    Gradient,
    InputTimesGradient,
    IntegratedGradients,
    SmoothGrad,
    explain,
)
from jaxpoison.augment import Augmentation
from jaxpoison.clustering import GWClusters, gw_kmeans
from jaxpoison.config import RunConfig
from jaxpoison.datasets.dataset import Dataset, Splits
from jaxpoison.datasets.folder import load_folder
from jaxpoison.datasets.loading import load_data
from jaxpoison.datasets.synthetic import synthetic
from jaxpoison.detectors.activation import ActivationClustering
from jaxpoison.detectors.detection import Detection
from jaxpoison.detectors.heatmap import HeatmapClustering
from jaxpoison.detectors.mean_distance import MeanDistanceClustering
from jaxpoison.detectors.raw import RawClustering
from jaxpoison.estimator import GromovWassersteinKMeans
from jaxpoison.gw.barycenters import barycenters
from jaxpoison.gw.distances import Distances, distances_to_centers
from jaxpoison.gw.grid import GridGeometry
from jaxpoison.gw.pairs import (
    PairDistances,
    all_distances,
    debiased_distances,
    pair_distances,
)
from jaxpoison.gw.quantisation import quantised
from jaxpoison.gw.solver import EntropicGW
from jaxpoison.lrp.balance import LayerBalance, conservation, layer_relevance
from jaxpoison.lrp.propagation import relevance_function
from jaxpoison.metrics import (
    DetectionRates,
    accuracy,
    attack_success_rate,
    detection_rates,
    success_rate_by_class,
)
from jaxpoison.models.checkpoint import load_model, save_model
from jaxpoison.models.inception import CompactInception
from jaxpoison.models.inference import layer_outputs, predict, pure
from jaxpoison.models.resnet import ResNet18
from jaxpoison.pipeline import RunOutcome, explain_all, run
from jaxpoison.retraining import ExclusiveRetraining, exclusive_retraining, repair, widened_suspects
from jaxpoison.screening import ScanOutcome, scan
from jaxpoison.separation import Separation, separation
from jaxpoison.spaces import MeasureSpaces, SmallSpaces, measure_spaces
from jaxpoison.training import History, TrainConfig, fit, protocol

__all__ = [
    "ActivationClustering",
    "AmplitudePattern",
    "Attribution",
    "Augmentation",
    "CompactInception",
    "Dataset",
    "Detection",
    "DetectionRates",
    "Distances",
    "EntropicGW",
    "ExclusiveRetraining",
    "Explanation",
    "GWClusters",
    "Gradient",
    "GridGeometry",
    "GromovWassersteinKMeans",
    "HeatmapClustering",
    "History",
    "InputTimesGradient",
    "IntegratedGradients",
    "LRP",
    "LayerBalance",
    "MeanDistanceClustering",
    "MeasureSpaces",
    "PGD",
    "PairDistances",
    "PoisonedSplits",
    "RawClustering",
    "ResNet18",
    "RunConfig",
    "RunOutcome",
    "ScanOutcome",
    "Separation",
    "SmallSpaces",
    "SmoothGrad",
    "Splits",
    "Sticker",
    "TrainConfig",
    "accuracy",
    "all_distances",
    "attack_success_rate",
    "barycenters",
    "conservation",
    "debiased_distances",
    "detection_rates",
    "distances_to_centers",
    "exclusive_retraining",
    "explain",
    "explain_all",
    "fit",
    "gw_kmeans",
    "label_consistent_backdoor",
    "layer_outputs",
    "layer_relevance",
    "load_data",
    "load_folder",
    "load_model",
    "measure_spaces",
    "pair_distances",
    "perturbed",
    "predict",
    "projected_gradient_ascent",
    "protocol",
    "pure",
    "quantised",
    "relevance_function",
    "repair",
    "run",
    "save_model",
    "scan",
    "separation",
    "standard_backdoor",
    "success_rate_by_class",
    "synthetic",
    "widened_suspects",
]
