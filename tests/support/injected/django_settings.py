"""The settings of the Django project."""

ROOT_URLCONF = "django_app"
ALLOWED_HOSTS = ["*"]
SECRET_KEY = "-"
