"""A Django project with urllib3 and botocore, in a WSGI server."""

import os
import sys
from wsgiref.simple_server import WSGIServer, make_server

import botocore.awsrequest
import google.protobuf
import typing_extensions
import urllib3
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse
from django.urls import path

assert botocore.awsrequest.AWSHTTPConnection
assert google.protobuf.__version__
assert typing_extensions.Literal

pool = urllib3.PoolManager()


def call(request):
    """Return what the two services received."""
    return JsonResponse({name: pool.request("GET", os.environ[name]).data.decode() for name in ("LISTED", "UNLISTED")})


def versions(request):
    """Return the urllib3 version that the application uses."""
    return JsonResponse({"urllib3": urllib3.__version__, "file": urllib3.__file__})


urlpatterns = [path("", call), path("versions", versions), path("healthz", lambda request: HttpResponse("ok"))]
application = get_wsgi_application()

if __name__ == "__main__":
    server: WSGIServer = make_server("127.0.0.1", 0, application)
    print(f"http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)  # noqa: T201
    server.serve_forever()
