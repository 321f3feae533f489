"""The messages and enums of Mesos' v1 API that the embedded Mesos looks into.

A table, no behaviour. `name!` is required, `name*` repeated, `=value` a default that Mesos always writes. Fields of kind `any`
are handed on as they came.
"""

from __future__ import annotations

import json

from stoker.mesos.embedded.core.codec import Field, Schema

_ID = "value!:string"

_MESSAGES = {
    "Id": _ID,
    "Label": "key!:string value:string",
    "Labels": "labels*:Label",
    "Scalar": "value!:double",
    "Range": "begin!:int end!:int",
    "Ranges": "range*:Range",
    "Set": "item*:string",
    "AllocationInfo": "role:string",
    "Reservation": "type:ReservationType role:string principal:string labels:Labels",
    "Persistence": "id!:string principal:string",
    "Volume": "mode!:VolumeMode container_path!:string host_path:string image:any source:any",
    "DiskInfo": "persistence:Persistence volume:Volume source:any",
    "Resource": "provider_id:any name!:string type!:ValueType scalar:Scalar ranges:Ranges set:Set role:string "
    "allocation_info:AllocationInfo reservation:Reservation reservations*:Reservation disk:DiskInfo revocable:any "
    "shared:any",
    "Variable": "name!:string type:VariableType=VALUE value:string secret:any",
    "Environment": "variables*:Variable",
    "Uri": "value!:string executable:bool extract:bool=true cache:bool output_file:string",
    "CommandInfo": "uris*:Uri environment:Environment shell:bool=true value:string arguments*:string user:string",
    "Duration": "nanoseconds!:int",
    "KillPolicy": "grace_period:Duration",
    "ExecutorInfo": "type:ExecutorType executor_id!:Id framework_id:Id command:CommandInfo container:any "
    "resources*:Resource name:string source:string data:bytes discovery:any shutdown_grace_period:Duration labels:Labels",
    "TaskInfo": "name!:string task_id!:Id agent_id!:Id resources*:Resource executor:ExecutorInfo command:CommandInfo "
    "container:any health_check:any check:any kill_policy:KillPolicy data:bytes labels:Labels discovery:any "
    "max_completion_time:Duration limits:any",
    "Capability": "type:CapabilityType",
    "FrameworkInfo": "user!:string name!:string id:Id failover_timeout:double=0.0 checkpoint:bool=false role:string "
    "roles*:string hostname:string principal:string webui_url:string capabilities*:Capability labels:Labels "
    "offer_filters:any",
    "Filters": "refuse_seconds:double min_allocatable_resources:any",
    "Launch": "task_infos*:TaskInfo",
    "TaskGroup": "tasks*:TaskInfo",
    "LaunchGroup": "executor!:ExecutorInfo task_group!:TaskGroup",
    "Reserve": "source*:Resource resources*:Resource",
    "ResourceList": "resources*:Resource",
    "VolumeList": "volumes*:Resource",
    "GrowVolume": "volume!:Resource addition!:Resource",
    "ShrinkVolume": "volume!:Resource subtract!:Scalar",
    "Operation": "type:OperationType id:Id launch:Launch launch_group:LaunchGroup reserve:Reserve "
    "unreserve:ResourceList create:VolumeList destroy:VolumeList grow_volume:GrowVolume shrink_volume:ShrinkVolume",
    "Subscribe": "framework_info!:FrameworkInfo suppressed_roles*:string offer_constraints:any",
    "Accept": "offer_ids*:Id operations*:Operation filters:Filters",
    "Decline": "offer_ids*:Id filters:Filters",
    "InverseOffers": "inverse_offer_ids*:Id filters:Filters",
    "Roles": "roles*:string",
    "Kill": "task_id!:Id agent_id:Id kill_policy:KillPolicy",
    "Shutdown": "executor_id!:Id agent_id!:Id",
    "Acknowledge": "agent_id!:Id task_id!:Id uuid!:bytes",
    "AcknowledgeOperationStatus": "agent_id:Id resource_provider_id:Id uuid!:bytes operation_id!:Id",
    "ReconcileTask": "task_id!:Id agent_id:Id",
    "Reconcile": "tasks*:ReconcileTask",
    "ReconcileOperation": "operation_id!:Id agent_id:Id resource_provider_id:Id",
    "ReconcileOperations": "operations*:ReconcileOperation",
    "SchedulerMessage": "agent_id!:Id executor_id!:Id data!:bytes",
    "Request": "requests*:any",
    "UpdateFramework": "framework_info!:FrameworkInfo suppressed_roles*:string offer_constraints:any",
    "SchedulerCall": "framework_id:Id type:SchedulerCallType subscribe:Subscribe accept:Accept decline:Decline "
    "accept_inverse_offers:InverseOffers decline_inverse_offers:InverseOffers revive:Roles kill:Kill shutdown:Shutdown "
    "acknowledge:Acknowledge acknowledge_operation_status:AcknowledgeOperationStatus reconcile:Reconcile "
    "reconcile_operations:ReconcileOperations message:SchedulerMessage request:Request suppress:Roles "
    "update_framework:UpdateFramework",
    "TaskStatus": "task_id!:Id state!:TaskState message:string source:StatusSource reason:StatusReason data:bytes "
    "agent_id:Id executor_id:Id timestamp:double uuid:bytes healthy:bool check_status:any labels:Labels "
    "container_status:any unreachable_time:any limitation:any",
    "ExecutorUpdate": "status!:TaskStatus",
    "ExecutorMessage": "data!:bytes",
    "ExecutorSubscribe": "unacknowledged_tasks*:TaskInfo unacknowledged_updates*:ExecutorUpdate",
    "ExecutorCall": "executor_id!:Id framework_id!:Id type:ExecutorCallType subscribe:ExecutorSubscribe "
    "update:ExecutorUpdate message:ExecutorMessage",
    "OfFramework": "framework_id!:Id",
    "OfAgent": "agent_id!:Id",
    "ResourcesOfAgent": "agent_id!:Id source*:Resource resources*:Resource",
    "VolumesOfAgent": "agent_id!:Id volumes*:Resource",
    "GrowVolumeOfAgent": "agent_id!:Id volume!:Resource addition!:Resource",
    "ShrinkVolumeOfAgent": "agent_id!:Id volume!:Resource subtract!:Scalar",
    "GracePeriod": "seconds:int nanos:int",
    "DrainAgent": "agent_id!:Id max_grace_period:GracePeriod mark_gone:bool",
    "MachineId": "hostname:string ip:string",
    "Unavailability": "start!:Duration duration:Duration",
    "Window": "machine_ids*:MachineId unavailability!:Unavailability",
    "Schedule": "windows*:Window",
    "UpdateSchedule": "schedule!:Schedule",
    "Machines": "machines*:MachineId",
    "QuotaConfigs": "force:bool quota_configs*:any",
    "WeightInfos": "weight_infos*:any",
    "MasterCall": "type:MasterCallType teardown:OfFramework mark_agent_gone:OfAgent drain_agent:DrainAgent "
    "deactivate_agent:OfAgent reactivate_agent:OfAgent reserve_resources:ResourcesOfAgent "
    "unreserve_resources:ResourcesOfAgent create_volumes:VolumesOfAgent destroy_volumes:VolumesOfAgent "
    "grow_volume:GrowVolumeOfAgent shrink_volume:ShrinkVolumeOfAgent update_maintenance_schedule:UpdateSchedule "
    "start_maintenance:Machines stop_maintenance:Machines update_quota:QuotaConfigs update_weights:WeightInfos",
}

_ENUMS = {
    "ValueType": "SCALAR RANGES SET TEXT",
    "ReservationType": "UNKNOWN STATIC DYNAMIC",
    "VolumeMode": "RW RO",
    "VariableType": "UNKNOWN VALUE SECRET",
    "ExecutorType": "UNKNOWN DEFAULT CUSTOM",
    "CapabilityType": "REVOCABLE_RESOURCES TASK_KILLING_STATE GPU_RESOURCES SHARED_RESOURCES PARTITION_AWARE MULTI_ROLE "
    "RESERVATION_REFINEMENT REGION_AWARE",
    "OperationType": "LAUNCH LAUNCH_GROUP RESERVE UNRESERVE CREATE DESTROY GROW_VOLUME SHRINK_VOLUME CREATE_DISK "
    "DESTROY_DISK",
    "SchedulerCallType": "SUBSCRIBE TEARDOWN ACCEPT DECLINE ACCEPT_INVERSE_OFFERS DECLINE_INVERSE_OFFERS REVIVE KILL "
    "SHUTDOWN ACKNOWLEDGE ACKNOWLEDGE_OPERATION_STATUS RECONCILE RECONCILE_OPERATIONS MESSAGE REQUEST SUPPRESS "
    "UPDATE_FRAMEWORK",
    "ExecutorCallType": "SUBSCRIBE UPDATE MESSAGE HEARTBEAT",
    "MasterCallType": "GET_HEALTH GET_FLAGS GET_VERSION GET_METRICS GET_LOGGING_LEVEL SET_LOGGING_LEVEL LIST_FILES "
    "READ_FILE GET_STATE GET_AGENTS GET_FRAMEWORKS GET_EXECUTORS GET_OPERATIONS GET_TASKS GET_ROLES GET_WEIGHTS "
    "UPDATE_WEIGHTS GET_MASTER SUBSCRIBE RESERVE_RESOURCES UNRESERVE_RESOURCES CREATE_VOLUMES DESTROY_VOLUMES "
    "GROW_VOLUME SHRINK_VOLUME GET_MAINTENANCE_STATUS GET_MAINTENANCE_SCHEDULE UPDATE_MAINTENANCE_SCHEDULE "
    "START_MAINTENANCE STOP_MAINTENANCE GET_QUOTA UPDATE_QUOTA SET_QUOTA REMOVE_QUOTA TEARDOWN MARK_AGENT_GONE "
    "DRAIN_AGENT DEACTIVATE_AGENT REACTIVATE_AGENT",
    "TaskState": "TASK_STAGING TASK_STARTING TASK_RUNNING TASK_KILLING TASK_FINISHED TASK_FAILED TASK_KILLED TASK_ERROR "
    "TASK_LOST TASK_DROPPED TASK_UNREACHABLE TASK_GONE TASK_GONE_BY_OPERATOR TASK_UNKNOWN",
    "StatusSource": "SOURCE_MASTER SOURCE_AGENT SOURCE_EXECUTOR",
    "StatusReason": "REASON_AGENT_DISCONNECTED REASON_AGENT_DRAINING REASON_AGENT_REMOVED "
    "REASON_AGENT_REMOVED_BY_OPERATOR REASON_AGENT_REREGISTERED REASON_AGENT_RESTARTED REASON_AGENT_UNKNOWN "
    "REASON_COMMAND_EXECUTOR_FAILED REASON_CONTAINER_LAUNCH_FAILED REASON_CONTAINER_LIMITATION "
    "REASON_CONTAINER_LIMITATION_DISK REASON_CONTAINER_LIMITATION_MEMORY REASON_CONTAINER_PREEMPTED "
    "REASON_CONTAINER_UPDATE_FAILED REASON_EXECUTOR_REGISTRATION_TIMEOUT REASON_EXECUTOR_REREGISTRATION_TIMEOUT "
    "REASON_EXECUTOR_TERMINATED REASON_EXECUTOR_UNREGISTERED REASON_FRAMEWORK_REMOVED REASON_GC_ERROR "
    "REASON_INVALID_FRAMEWORKID REASON_INVALID_OFFERS REASON_IO_SWITCHBOARD_EXITED REASON_MASTER_DISCONNECTED "
    "REASON_MAX_COMPLETION_TIME_REACHED REASON_RECONCILIATION REASON_RESOURCES_UNKNOWN "
    "REASON_TASK_CHECK_STATUS_UPDATED REASON_TASK_GROUP_INVALID REASON_TASK_GROUP_UNAUTHORIZED "
    "REASON_TASK_HEALTH_CHECK_STATUS_UPDATED REASON_TASK_INVALID REASON_TASK_KILLED_DURING_LAUNCH "
    "REASON_TASK_UNAUTHORIZED REASON_TASK_UNKNOWN",
}


def _field(text: str) -> tuple[str, Field]:
    head, _, kind = text.partition(":")
    kind, _, default = kind.partition("=")
    value = None if not default else default if default.isupper() else json.loads(default)
    return head.rstrip("!*"), Field(kind, head.endswith("*"), head.endswith("!"), value)


SCHEMA = Schema(
    {name: dict(_field(text) for text in fields.split()) for name, fields in _MESSAGES.items()},
    {name: frozenset(values.split()) for name, values in _ENUMS.items()},
)

TERMINAL_STATES = frozenset(
    "TASK_FINISHED TASK_FAILED TASK_KILLED TASK_ERROR TASK_LOST TASK_DROPPED TASK_GONE TASK_GONE_BY_OPERATOR".split()
)
