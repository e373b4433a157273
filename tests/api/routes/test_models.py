"""Models over HTTP, on a real service."""

import httpx

from tests.api.helpers import (
    ENLARGE,
    FAULTY,
    MODEL,
    TINY,
    problem,
)


def test_models_are_listed_with_their_cards(client: httpx.Client) -> None:
    """The list has the card of each model, with links to its operations."""
    listed = client.get("/v1/models").json()
    names = [model["name"] for model in listed["data"]]  # other tests may have published more
    assert names == sorted(names)
    assert {ENLARGE, FAULTY, TINY, MODEL} <= set(names)
    assert (listed["object"], listed["has_more"]) == ("list", False)
    assert (listed["first_id"], listed["last_id"]) == (names[0], names[-1])
    card = client.get(f"/v1/models/{MODEL}").json()
    assert card == listed["data"][names.index(MODEL)]
    assert card["image"] == {"channels": 1, "height": 28, "width": 28}
    assert (card["version"], card["versions"], card["family"]) == ("1", ["1"], "vae")
    assert card["operations"]["manifold"]["options"]["properties"]["size"]["default"] == 20
    assert card["links"]["manifold"] == "/v1/manifold"
    for path, link in card["links"].items():
        assert client.get(link).status_code == (200 if path == "self" else 405)


def test_an_unknown_model_has_no_card(client: httpx.Client) -> None:
    """An unknown model is 404, which says where models are listed."""
    problem(client.get("/v1/models/gan"), 404, "gan", "/v1/models")
