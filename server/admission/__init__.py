"""Who may come in, in which order, and who is told to come back later."""

from server.admission.gate import Gate
from server.admission.policy import AdmissionError, Policy, Ticket
from server.admission.rates import Rates

__all__ = ["AdmissionError", "Gate", "Policy", "Rates", "Ticket"]
