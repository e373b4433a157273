"""Models over HTTP, on a real service."""

from concurrent.futures import ThreadPoolExecutor

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
        assert client.get(link).status_code == (200 if path in {"self", "sheet"} else 405)


def test_a_sample_sheet_has_samples_of_seed_0(client: httpx.Client) -> None:
    """They are those of `POST /v1/samples`; it has an entity tag; all requests get the same one."""
    link = client.get(f"/v1/models/{MODEL}").json()["links"]["sheet"]
    assert link == f"/v1/models/{MODEL}@1/sheet"
    with ThreadPoolExecutor() as pool:
        sheets = list(pool.map(lambda _: client.get(link), range(6)))
    assert {(sheet.status_code, sheet.headers["content-type"]) for sheet in sheets} == {(200, "image/png")}
    assert len({(sheet.content, sheet.headers["etag"]) for sheet in sheets}) == 1
    drawn = client.post("/v1/samples", json={"model": MODEL, "count": 81, "seed": 0}, headers={"Accept": "image/png"})
    assert drawn.content == sheets[0].content
    assert sheets[0].headers["reverie-model"] == f"{MODEL}@1"
    tag = sheets[0].headers["etag"]
    unchanged = client.get(f"/v1/models/{MODEL}/sheet", headers={"If-None-Match": f'"other", W/{tag}'})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", tag)
    assert client.get(link, headers={"If-None-Match": '"other"'}).content == drawn.content
    problem(client.get("/v1/models/gan/sheet"), 404, "gan", "/v1/models")
    problem(client.get(f"/v1/models/{MODEL}@7/sheet"), 404, "/v1/models")
    problem(client.get(f"/v1/models/{ENLARGE}/sheet"), 404, "no preview", "cannot draw samples")


def test_an_unknown_model_has_no_card(client: httpx.Client) -> None:
    """An unknown model is 404, which says where models are listed."""
    problem(client.get("/v1/models/gan"), 404, "gan", "/v1/models")
