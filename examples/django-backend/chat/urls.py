"""The site's pages, and the endpoints that the nodes ask."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from chat import proxy, views

urlpatterns = [
    path("", views.rooms),
    path("rooms/<slug:slug>/", views.room, name="room"),
    path("accounts/login/", LoginView.as_view(template_name="login.html")),
    path("accounts/logout/", LogoutView.as_view(next_page="/")),
    path("admin/", admin.site.urls),
    path("centrifugo/connect", proxy.connect),
    path("centrifugo/subscribe", proxy.subscribe),
    path("centrifugo/publish", proxy.publish),
    path("centrifugo/rpc", proxy.rpc),
]
