{{/* Names, labels, and what several templates ask of the values. */}}

{{- define "fusion.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "fusion.fullname" -}}
{{- $name := include "fusion.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "fusion.selector" -}}
app.kubernetes.io/name: {{ include "fusion.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The pods that answer requests; the workers of a multi-node engine do not. */}}
{{- define "fusion.serving" -}}
{{ include "fusion.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "fusion.labels" -}}
{{ include "fusion.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "fusion.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "fusion.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "fusion.image" -}}
{{- $flavour := ternary "cuda" "cpu" (gt (int .Values.gpus.count) 0) }}
{{- .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $flavour) }}
{{- end }}

{{- define "fusion.keysSecret" -}}
{{- if .Values.auth.existingSecret }}
{{- .Values.auth.existingSecret }}
{{- else if .Values.auth.keys }}
{{- include "fusion.fullname" . }}-keys
{{- end }}
{{- end }}

{{- define "fusion.modelsClaim" -}}
{{- if .Values.models.claim.existing }}
{{- .Values.models.claim.existing }}
{{- else if .Values.models.claim.create }}
{{- include "fusion.fullname" . }}-models
{{- end }}
{{- end }}

{{/* Whether there is a volume at /models. */}}
{{- define "fusion.hasModels" -}}
{{- if or (include "fusion.modelsClaim" .) .Values.models.hub .Values.models.s3 }}yes{{ end }}
{{- end }}

{{/* The server's configuration file. The demo models' folders lie in the image. */}}
{{- define "fusion.config" -}}
{{- if .Values.config }}
{{- .Values.config | trim }}
{{- else }}
{{- .Files.Get "files/zoo.yaml" | replace "{model: models/" "{model: /opt/logit-fusion/zoo/models/" | replace "route: models/" "route: /opt/logit-fusion/zoo/models/" | trim }}
{{- end }}
{{- if include "fusion.keysSecret" . }}
auth: {keys_file: keys.yaml}
{{- end }}
{{- end }}

{{/* The names under which clients reach the server, as a list in YAML's flow form. */}}
{{- define "fusion.hosts" -}}
{{- $service := include "fusion.fullname" . }}
{{- $hosts := list $service }}
{{- range $end := list "" ".svc" ".svc.cluster.local" }}
{{- $hosts = append $hosts (printf "%s.%s%s" $service $.Release.Namespace $end) }}
{{- end }}
{{- if .Values.ingress.enabled }}
{{- $hosts = append $hosts .Values.ingress.host }}
{{- end }}
{{- if .Values.httpRoute.enabled }}
{{- $hosts = concat $hosts .Values.httpRoute.hostnames }}
{{- end }}
{{- concat $hosts .Values.allowedHosts | toJson }}
{{- end }}

{{/* What the schema cannot see, because it takes two values to be wrong. */}}
{{- define "fusion.check" -}}
{{- $config := include "fusion.config" . | fromYaml }}
{{- with $config.Error }}
{{- fail (printf "config: not valid YAML: %s" .) }}
{{- end }}
{{- range $key := list "large" "presets" }}
{{- if not (hasKey $config $key) }}
{{- fail (printf "config: lacks the section %s (docs/configuration.md)" $key) }}
{{- end }}
{{- end }}
{{- if and (include "fusion.keysSecret" .) (regexMatch "(?m)^auth:" .Values.config) }}
{{- fail "config: has a section auth, and auth.keys or auth.existingSecret is set too; leave one of them out" }}
{{- end }}
{{- if and .Values.auth.keys .Values.auth.existingSecret }}
{{- fail "auth: set keys or existingSecret, not both" }}
{{- end }}
{{- $http := $config.http | default dict }}
{{- if and .Values.rootPath $http.root_path }}
{{- fail "rootPath: config has http.root_path too; leave that one out, so that ingress and server agree" }}
{{- end }}
{{- if $http.metrics_port }}
{{- fail "config: http.metrics_port is set by metrics.port, which also tells the Service and the ServiceMonitor" }}
{{- end }}
{{- if and .Values.allowedHosts $http.allowed_hosts }}
{{- fail "allowedHosts: config has http.allowed_hosts too; leave one of them out" }}
{{- end }}
{{- if and .Values.autoscaling.enabled .Values.keda.enabled }}
{{- fail "autoscaling.enabled, keda.enabled: two autoscalers would work against each other; enable one" }}
{{- end }}
{{- $engine := $config.engine | default dict }}
{{- $parallel := int ($engine.tensor_parallel_size | default 1) }}
{{- $nodes := ternary (int .Values.multiNode.size) 1 .Values.multiNode.enabled }}
{{- $gpus := mul (int .Values.gpus.count) $nodes | int }}
{{- if and (gt $gpus 0) (ne $gpus $parallel) }}
{{- fail (printf "gpus.count: the engine gets %d GPUs, but config's engine.tensor_parallel_size is %d; they must be equal" $gpus $parallel) }}
{{- end }}
{{- if .Values.multiNode.enabled }}
{{- if eq $gpus 0 }}
{{- fail "multiNode.enabled: needs gpus.count, the GPUs of each pod" }}
{{- end }}
{{- if ne ($engine.distributed_executor_backend | default "") "ray" }}
{{- fail "multiNode.enabled: config needs engine.distributed_executor_backend: ray" }}
{{- end }}
{{- end }}
{{- $replicas := int .Values.replicas }}
{{- if .Values.autoscaling.enabled }}{{ $replicas = int .Values.autoscaling.maxReplicas }}{{ end }}
{{- if .Values.keda.enabled }}{{ $replicas = int .Values.keda.maxReplicas }}{{ end }}
{{- if and .Values.models.claim.create (gt (mul $replicas $nodes) 1) (hasPrefix "ReadWriteOnce" .Values.models.claim.accessMode) }}
{{- fail (printf "models.claim.accessMode: %s lets one node mount the claim, but there can be %d pods; use ReadWriteMany, or no claim" .Values.models.claim.accessMode (mul $replicas $nodes)) }}
{{- end }}
{{- range $name := list "autoscaling" "keda" }}
{{- $scaler := index $.Values $name }}
{{- if gt (int $scaler.minReplicas) (int $scaler.maxReplicas) }}
{{- fail (printf "%s.minReplicas: %d is more than maxReplicas, %d" $name (int $scaler.minReplicas) (int $scaler.maxReplicas)) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "fusion.scaleTarget" -}}
{{- if .Values.multiNode.enabled -}}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else -}}
apiVersion: apps/v1
kind: Deployment
{{- end }}
name: {{ include "fusion.fullname" . }}
{{- end }}
