-- Hand every radiograph that comes to this Orthanc on to the node ("cxr-node" in DicomModalities), and keep trying while the
-- node is away. What the node itself sends is left alone; if it did go back, the node would take it and analyse nothing.
--
-- What has yet to arrive stands in a file beside Orthanc's own, so that it outlives Orthanc too. A radiograph goes at once;
-- one that couldn't be sent waits, 10 seconds at first and 5 minutes in the end, and as soon as one arrives all others
-- follow. One that the node refuses for its own sake holds up no other. Sent twice after a crash, the node knows it and analyses it once.
--
-- The clock is Orthanc's heart beat (from 1.11.1 on, "LuaHeartBeatPeriod"). Older ones, such as Debian's 1.10, have none:
-- there a shell (bash) sleeps and asks Orthanc by curl, over its own REST API without a password, to try that job again.

local MODALITY, NODE = "cxr-node", "CXRNODE"
local FIRST_WAIT_S, LONGEST_WAIT_S = 10, 300
local MOST_JOBS = 2 -- at the same time

local queue = {} -- Orthanc's IDs of what has yet to arrive, the next to be sent first
local queued = {} -- the same as a set
local jobs = {} -- jobs under way or to be tried again: the instance that each sends
local sending = {} -- instances with a job under way
local under_way = 0
local wait_s, due_at = FIRST_WAIT_S, 0
local probe = nil -- the instance whose job a shell will have tried again
local GRACE_S = 30 -- and how long after its time it is left to that
local has_heart_beat = false

local function journal_path()
  return (GetOrthancConfiguration()["StorageDirectory"] or "OrthancStorage") .. "/cxr-node.queue"
end

-- Write a line at the end: "+ID" has yet to arrive, "-ID" is done with.
local function note(line)
  local journal = io.open(journal_path(), "a")
  if journal then
    journal:write(line .. "\n")
    journal:close()
  else
    print("autoroute: " .. journal_path() .. " can't be written: what waits for the node is lost when Orthanc stops")
  end
end

local function enqueue(instance)
  if not queued[instance] then
    queued[instance] = true
    table.insert(queue, instance)
  end
end

local function dequeue(instance)
  for place, id in ipairs(queue) do
    if id == instance then
      table.remove(queue, place)
      break
    end
  end
  queued[instance] = nil
  note("-" .. instance)
end

local function read_journal()
  local journal = io.open(journal_path(), "r")
  if not journal then
    return
  end
  local order = {}
  for line in journal:lines() do
    local sign, instance = line:match("^([+-])(%S+)$")
    if sign == "+" then
      table.insert(order, instance)
      queued[instance] = true
    elseif sign == "-" then
      queued[instance] = nil
    end
  end
  journal:close()
  local there = queued
  queued = {}
  for _, instance in ipairs(order) do
    if there[instance] then
      enqueue(instance)
    end
  end
  -- begin anew with what is left, under another name first: a stop in between loses nothing
  local fresh = io.open(journal_path() .. ".new", "w")
  if fresh then
    for _, instance in ipairs(queue) do
      fresh:write("+" .. instance .. "\n")
    end
    fresh:close()
    os.rename(journal_path() .. ".new", journal_path())
  end
end

-- Start a job that sends an instance. False: Orthanc takes none.
local function send(instance)
  local order = { Resources = { instance }, Asynchronous = true }
  local answer = RestApiPost("/modalities/" .. MODALITY .. "/store", DumpJson(order))
  if answer == nil then
    return false
  end
  jobs[ParseJson(answer)["ID"]] = instance
  sending[instance] = true
  under_way = under_way + 1
  return true
end

-- Start jobs for what is first in the queue.
local function send_some(most)
  local place = 1
  while place <= #queue and under_way < most do
    local instance = queue[place]
    local left_to_shell = instance == probe and os.time() < due_at + GRACE_S
    if sending[instance] or left_to_shell then
      place = place + 1
    elseif RestApiGet("/instances/" .. instance) == nil then
      dequeue(instance) -- deleted here before it arrived there
    elseif send(instance) then
      place = place + 1
    else
      return
    end
  end
end

-- Behind the others: one that the node refuses for its own sake holds up nobody.
local function put_last(instance)
  for place, id in ipairs(queue) do
    if id == instance then
      table.remove(queue, place)
      table.insert(queue, instance)
      return
    end
  end
end

local function wait_for_the_node(job)
  due_at = os.time() + wait_s
  if not has_heart_beat then
    probe = jobs[job]
    local port = GetOrthancConfiguration()["HttpPort"] or 8042
    local url = "http://localhost:" .. string.format("%d", port) .. "/jobs/" .. job .. "/resubmit"
    -- bash can close what it inherits of Orthanc's sockets: its ports would stay taken when it stops
    local close = "for f in /proc/self/fd/*; do n=${f##*/}; ((n > 2)) && exec {n}>&-; done; "
    local ask = "sleep " .. wait_s .. "; curl -s -X POST -d x " .. url
    os.execute("bash -c '" .. close .. ask .. "' </dev/null >/dev/null 2>&1 &")
  end
  wait_s = math.min(LONGEST_WAIT_S, 2 * wait_s)
end

function Initialize()
  read_journal()
  if #queue > 0 then
    print("autoroute: " .. #queue .. " radiographs have yet to reach the node")
    send_some(1)
  end
end

function OnStoredInstance(instanceId, tags, metadata, origin)
  local radiograph = tags["Modality"] == "CR" or tags["Modality"] == "DX"
  if radiograph and origin["RemoteAet"] ~= NODE then
    note("+" .. instanceId)
    enqueue(instanceId)
    send(instanceId) -- even while others wait: they may be such as the node refuses
  end
end

function OnJobSuccess(jobId)
  local instance = jobs[jobId]
  if instance then
    jobs[jobId], probe = nil, nil
    if sending[instance] then
      sending[instance] = nil
      under_way = under_way - 1
    end
    if queued[instance] then
      dequeue(instance)
    end
    wait_s, due_at = FIRST_WAIT_S, 0
    send_some(MOST_JOBS)
  end
end

function OnJobFailure(jobId)
  local instance = jobs[jobId]
  if instance then
    if sending[instance] then
      sending[instance] = nil
      under_way = under_way - 1
    end
    put_last(instance)
    if os.time() >= due_at then -- not for each of several that fail at the same time
      wait_for_the_node(jobId)
      send_some(1) -- another one has its turn too
    else
      jobs[jobId] = nil
    end
  end
end

function OnHeartBeat()
  has_heart_beat = true
  if os.time() >= due_at and under_way == 0 then
    jobs, probe = {}, nil
    send_some(1)
  end
end
