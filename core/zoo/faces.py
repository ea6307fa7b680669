"""Render 32x32 faces with nine known factors: the training data and ground truth of the embedded face models.

Faces are drawn from signed distances with anti-aliased edges, in one batch, without any randomness, so that the same
factors give the same pixels on every machine.
"""

import torch
from torch import Tensor

FACTORS = (
    "skin",  # dark .. light
    "hair_colour",  # dark brown .. blond
    "hair_length",  # ends above the ears .. below the chin
    "smile",  # frown .. broad smile
    "eye_opening",  # nearly closed .. wide open
    "glasses",  # none .. solid dark frames (opacity)
    "face_width",  # narrow .. wide
    "yaw",  # head turned to the viewer's left .. right
    "background",  # blue .. orange
)
SIZE = 32
_SUPERSAMPLING = 2
_ZOOM = 0.84  # the head fills the frame

_SKIN = torch.tensor([[0.36, 0.22, 0.15], [0.72, 0.50, 0.37], [0.98, 0.84, 0.74]])
_HAIR = torch.tensor([[0.10, 0.06, 0.05], [0.47, 0.28, 0.12], [0.95, 0.80, 0.38]])
_BACKGROUND = torch.tensor([[0.22, 0.42, 0.85], [0.58, 0.60, 0.62], [0.92, 0.58, 0.20]])
_BLACK = torch.tensor([0.06, 0.05, 0.08])
_WHITE = torch.tensor([0.97, 0.97, 0.97])
_LIPS = torch.tensor([0.70, 0.12, 0.16])


def sample_factors(count: int, generator: torch.Generator) -> Tensor:
    """Draw independent factors, uniform in [-1, 1]: [count, 9] in the order of `FACTORS`."""
    return torch.rand(count, len(FACTORS), generator=generator) * 2 - 1


def render(factors: Tensor) -> Tensor:
    """Render faces. factors: [N, 9] in [-1, 1] -> images [N, 3, 32, 32] in [-1, 1]."""
    if factors.ndim != 2 or factors.shape[1] != len(FACTORS):
        raise ValueError(
            f"factors: got shape {list(factors.shape)}, expected [N, {len(FACTORS)}] ({', '.join(FACTORS)})"
        )
    factors = factors.float()[:, :, None, None]  # [N, 9, 1, 1]
    skin, hair_colour, hair_length, smile, eye_opening, glasses, face_width, yaw, background = factors.unbind(1)

    side = SIZE * _SUPERSAMPLING
    axis = _ZOOM * ((torch.arange(side) + 0.5) / side * 2 - 1)
    y, x = torch.meshgrid(axis, axis, indexing="ij")  # [side, side], y points down
    pixel = _ZOOM * 2 / side

    def paint(canvas: Tensor, distance: Tensor, colour: Tensor, opacity: Tensor | float = 1.0) -> Tensor:
        """Paint `colour` over the canvas where the signed distance is negative, with an edge one pixel soft."""
        cover = (0.5 - distance / pixel).clamp(0, 1) * opacity  # [N, side, side]
        return canvas + cover[:, None] * (colour - canvas)

    turn = 0.50 * yaw  # radians
    half_width = 0.43 + 0.09 * face_width
    centre = 0.05 * yaw
    skin_tone, hair_tone = _ramp(_SKIN, skin), _ramp(_HAIR, hair_colour)

    def on_head(angle: float) -> Tensor:
        """Return the horizontal position of a point at `angle` from the nose line of a head turned by yaw."""
        return centre + half_width * torch.sin(turn + angle)

    image = _ramp(_BACKGROUND, background).expand(-1, 3, side, side)
    hair_end = 0.40 + 0.42 * hair_length  # y of the strands' lower end
    image = paint(
        image,
        _rounded_box(x - centre, y - (hair_end - 0.45) / 2, half_width + 0.13, (hair_end + 0.45) / 2, 0.12),
        hair_tone,
    )
    image = paint(image, _ellipse(x - centre, y + 0.22, half_width + 0.15, 0.60), hair_tone)
    image = paint(image, _rounded_box(x - centre, y - 0.86, 0.16, 0.30, 0.05), skin_tone * 0.86)
    face = _ellipse(x - centre, y - 0.12, half_width, 0.60)
    image = paint(image, face, skin_tone)
    fringe = torch.maximum(face - 0.02, y + 0.22 - 0.10 * (x - on_head(0.0)) ** 2)
    image = paint(image, fringe, hair_tone)

    opening = 0.09 + 0.07 * eye_opening
    for angle in (-0.46, 0.46):
        eye_x, eye_width = on_head(angle), 0.135 * torch.cos(turn + angle)
        eye = _ellipse(x - eye_x, y - 0.02, eye_width, opening)
        image = paint(image, eye, _WHITE[:, None, None])
        pupil = torch.maximum(eye, _ellipse(x - eye_x - 0.03 * yaw, y - 0.02, 0.066, 0.085))
        image = paint(image, pupil, _BLACK[:, None, None])
        image = paint(image, _rounded_box(x - eye_x, y + 0.165, eye_width, 0.022, 0.02), hair_tone * 0.6)

    image = paint(image, _rounded_box(x - on_head(0.0) - 0.06 * yaw, y - 0.19, 0.035, 0.075, 0.03), skin_tone * 0.72)
    mouth_x, mouth_width = on_head(0.0), (0.21 + 0.03 * smile) * torch.cos(turn)
    across = ((x - mouth_x) / mouth_width).clamp(-1.2, 1.2)
    bend = y - 0.45 + 0.17 * smile * (across**2 - 0.45)  # distance from the bent mouth line
    mouth = torch.maximum(bend.abs() - 0.05, (x - mouth_x).abs() - mouth_width)
    image = paint(image, mouth, _LIPS[:, None, None])

    opacity = (glasses + 1) / 2
    for angle in (-0.46, 0.46):
        lens = _ellipse(x - on_head(angle), y - 0.03, 0.185 * torch.cos(turn + angle), 0.175)
        image = paint(image, lens.abs() - 0.032, _BLACK[:, None, None], opacity)
    bridge = torch.maximum(y.abs() - 0.03, (x - on_head(0.0)).abs() - 0.06)
    image = paint(image, bridge, _BLACK[:, None, None], opacity)

    return torch.nn.functional.avg_pool2d(image, _SUPERSAMPLING) * 2 - 1


def _ramp(colours: Tensor, position: Tensor) -> Tensor:
    """Return the piecewise linear colour [N, 3, 1, 1] at position [N, 1, 1] in [-1, 1] on three stops [3, 3]."""
    position = position[:, None]
    low, middle, high = colours[:, :, None, None]
    return torch.where(position < 0, middle + position * (middle - low), middle + position * (high - middle))


def _ellipse(x: Tensor, y: Tensor, radius_x: Tensor | float, radius_y: Tensor | float) -> Tensor:
    """Return the first-order signed distance to an ellipse: f / |grad f|, exact at the edge."""
    scaled = torch.sqrt((x / radius_x) ** 2 + (y / radius_y) ** 2)
    slope = torch.sqrt((x / radius_x**2) ** 2 + (y / radius_y**2) ** 2)
    return scaled * (scaled - 1) / (slope + 1e-6)


def _rounded_box(
    x: Tensor, y: Tensor, half_width: Tensor | float, half_height: Tensor | float, radius: float
) -> Tensor:
    """Return the signed distance to a box with rounded corners."""
    outside_x, outside_y = x.abs() - half_width + radius, y.abs() - half_height + radius
    corner = torch.sqrt(outside_x.clamp(min=0) ** 2 + outside_y.clamp(min=0) ** 2)
    return corner + torch.maximum(outside_x, outside_y).clamp(max=0) - radius


def factor_sweep(factor: str, values: int = 7) -> Tensor:
    """Render one row of faces in which only `factor` moves from -1 to 1: [values, 3, 32, 32]."""
    factors = torch.zeros(values, len(FACTORS))
    factors[:, FACTORS.index(factor)] = torch.linspace(-1, 1, values)
    return render(factors)
