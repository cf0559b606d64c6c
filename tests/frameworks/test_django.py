"""Django, with the stack around it. It refuses lifespans, which the stack handles."""

from __future__ import annotations

from typing import Any

import pytest
from support.framework_contract import FrameworkContract, Orders

from asgi_durable.middleware.asgi import ASGIApp

django = pytest.importorskip("django")

from django.conf import settings  # noqa: E402
from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def configured() -> None:
    settings.configure(ALLOWED_HOSTS=["*"], SECRET_KEY="for tests", USE_I18N=False)
    django.setup()


class TestDjango(FrameworkContract):
    def make_app(self, orders: Orders) -> ASGIApp:
        async def order(_request: HttpRequest, item: str) -> JsonResponse:
            return JsonResponse(await orders.place(item))

        class Urls:
            urlpatterns: list[Any] = [path("orders/<item>", order)]  # noqa: RUF012

        settings.ROOT_URLCONF = Urls
        return ASGIHandler()
