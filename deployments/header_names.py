"""Names of the headers that gateway, replica and client must agree on."""

REQUEST_ID_HEADER = "X-Request-Id"
CLASS_HEADER = "X-Tidegate-Data-Class"
SLOT_HEADER = "X-Tidegate-Slot"
SITE_HEADER = "X-Tidegate-Site"
REPLICA_HEADER = "X-Tidegate-Replica"
REASON_HEADER = "X-Tidegate-Reason"
ENGINE_HEADER = "X-Tidegate-Engine"
