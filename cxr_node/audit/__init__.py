"""The audit trail: standard messages, repositories, tamper detection, archives, histories in sentences, FHIR."""
