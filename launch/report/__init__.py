"""RUN/report.html: one page, no other file, that says what a run did and found."""

from __future__ import annotations

from launch.report.page import write_report

__all__ = ["write_report"]
