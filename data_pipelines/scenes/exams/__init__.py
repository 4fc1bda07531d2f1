"""Exams of models of scenes: questions whose right answers are known, and what answers are worth."""
