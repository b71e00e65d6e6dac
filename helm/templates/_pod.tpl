{{/* One pod of an engine. Called with (dict "root" $ "role" R): "server", or in a multi-node engine "leader", "worker". */}}

{{- define "fusion.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "fusion.hubToken" -}}
{{- with .Values.models.hubToken }}
{{- if .secret }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ .secret }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- end }}

{{- define "fusion.env" -}}
{{- if include "fusion.hasModels" . }}
- {name: HF_HOME, value: /models/.huggingface}
{{- end }}
{{- if .Values.multiNode.enabled }}
- name: VLLM_HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}
{{- with .Values.metrics.keySecret }}
{{- if .name }}
- name: LOGIT_FUSION_METRICS_KEY
  valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
{{- end }}
{{- end }}
{{- include "fusion.hubToken" . }}
{{- with .Values.env }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "fusion.serveArguments" -}}
- serve
- --config=/etc/logit-fusion/config.yaml
- --host=0.0.0.0
- --port=8000
- --drain-timeout={{ .Values.drain.timeoutSeconds }}
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- with .Values.rootPath }}
- --set=http.root_path={{ . }}
{{- end }}
{{- $http := (include "fusion.config" . | fromYaml).http | default dict }}
{{- if not (or (hasKey $http "allowed_hosts") (and (include "fusion.keysSecret" .) (not .Values.allowedHosts))) }}
- {{ printf "--set=http.allowed_hosts=%s" (include "fusion.hosts" .) | quote }}
{{- end }}
{{- with int .Values.metrics.port }}
- --set=http.metrics_port={{ . }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "fusion.pod" -}}
{{- $role := .role }}
{{- with .root }}
{{- $worker := eq $role "worker" }}
metadata:
  labels:
    {{- include "fusion.labels" . | nindent 4 }}
    app.kubernetes.io/component: {{ ternary "worker" "server" $worker }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # A new configuration means new pods. Keys do not: the server reads them again by itself.
    checksum/config: {{ include "fusion.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "fusion.serviceAccount" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .Values.drain.preStopSeconds .Values.drain.timeoutSeconds .Values.drain.engineStopSeconds }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    # Large volumes are not walked at every start.
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if .Values.topologySpread.enabled }}
  topologySpreadConstraints:
    - maxSkew: {{ .Values.topologySpread.maxSkew }}
      topologyKey: {{ .Values.topologySpread.topologyKey }}
      whenUnsatisfiable: {{ .Values.topologySpread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "fusion.serving" . | nindent 10 }}
  {{- end }}
  {{- if or .Values.models.hub .Values.models.s3 }}
  initContainers:
    {{- range .Values.models.hub }}
    - name: fetch-{{ .folder | replace "." "-" }}
      image: {{ include "fusion.image" $.root }}
      imagePullPolicy: {{ $.root.Values.image.pullPolicy }}
      command: [hf, download, {{ .id | quote }}{{ with .revision }}, --revision, {{ . | quote }}{{ end }}, --local-dir, /models/{{ .folder }}]
      env:
        - {name: HF_HOME, value: /tmp/huggingface}
        {{- include "fusion.hubToken" $.root | nindent 8 }}
      securityContext:
        {{- include "fusion.containerSecurity" $.root | nindent 8 }}
      volumeMounts:
        - {name: models, mountPath: /models}
        - {name: scratch, mountPath: /tmp}
    {{- end }}
    {{- range .Values.models.s3 }}
    - name: fetch-{{ .folder | replace "." "-" }}
      image: {{ $.root.Values.models.s3Image }}
      command: [aws, s3, sync, --no-progress, {{ .uri | quote }}, /models/{{ .folder }}]
      env:
        - {name: HOME, value: /tmp}
      {{- with $.root.Values.models.s3Secret }}
      envFrom:
        - secretRef: {name: {{ . }}}
      {{- end }}
      securityContext:
        {{- include "fusion.containerSecurity" $.root | nindent 8 }}
      volumeMounts:
        - {name: models, mountPath: /models}
        - {name: scratch, mountPath: /tmp}
    {{- end }}
  {{- end }}
  containers:
    - name: server
      image: {{ include "fusion.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- if eq $role "server" }}
      args:
        {{- include "fusion.serveArguments" . | nindent 8 }}
      {{- else if $worker }}
      command: [tini, --, ray, start, --block, --address=$(LWS_LEADER_ADDRESS):6379]
      {{- else }}
      # Ray goes to the background; the server takes the shell's place, and so the signals.
      command: [tini, --, sh, -c, 'ray start --head --port=6379 && exec logit-fusion "$@"', sh]
      args:
        {{- include "fusion.serveArguments" . | nindent 8 }}
      {{- end }}
      {{- with include "fusion.env" . | trim }}
      env:
        {{- . | nindent 8 }}
      {{- end }}
      {{- if not $worker }}
      ports:
        - {name: http, containerPort: 8000}
        {{- with int .Values.metrics.port }}
        - {name: metrics, containerPort: {{ . }}}
        {{- end }}
      # Loading takes as long as it takes; the other two only begin when it is over.
      startupProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div (add .Values.startupSeconds 4) 5 }}
      readinessProbe:
        httpGet: {path: /ready, port: http}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      # Healthy while it drains: only a dead engine is a reason to start again.
      livenessProbe:
        httpGet: {path: /health, port: http}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 3
      {{- end }}
      lifecycle:
        preStop:
          exec: {command: [sleep, {{ .Values.drain.preStopSeconds | quote }}]}
      {{- $resources := deepCopy .Values.resources }}
      {{- if .Values.gpus.count }}
      {{- $gpus := dict .Values.gpus.resource (int .Values.gpus.count) }}
      {{- $resources = merge (dict "limits" $gpus "requests" $gpus) $resources }}
      {{- end }}
      resources:
        {{- toYaml $resources | nindent 8 }}
      securityContext:
        {{- include "fusion.containerSecurity" . | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/logit-fusion, readOnly: true}
        - {name: scratch, mountPath: /tmp}
        - {name: shared-memory, mountPath: /dev/shm}
        {{- if include "fusion.hasModels" . }}
        - {name: models, mountPath: /models}
        {{- end }}
  volumes:
    - name: config
      projected:
        sources:
          - configMap: {name: {{ include "fusion.fullname" . }}}
          {{- with include "fusion.keysSecret" . }}
          - secret:
              name: {{ . }}
              items: [{key: keys.yaml, path: keys.yaml}]
          {{- end }}
    - name: scratch
      emptyDir: {sizeLimit: {{ .Values.scratch }}}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}
    {{- if include "fusion.hasModels" . }}
    - name: models
      {{- with include "fusion.modelsClaim" . }}
      persistentVolumeClaim: {claimName: {{ . }}}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- end }}
{{- end }}
{{- end }}
