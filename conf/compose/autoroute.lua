-- Hand every radiograph that comes to this Orthanc on to the node ("cxr-node" in DicomModalities).
-- What the node itself sends is left alone; if it did go back, the node would take it and analyse nothing.

function OnStoredInstance(instanceId, tags, metadata, origin)
  local radiograph = tags["Modality"] == "CR" or tags["Modality"] == "DX"
  if radiograph and origin["RemoteAet"] ~= "CXRNODE" then
    SendToModality(instanceId, "cxr-node")
  end
end
