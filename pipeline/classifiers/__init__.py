"""Classifiers of single pixels by features of their surroundings: gradient boosted trees and logistic regression."""
