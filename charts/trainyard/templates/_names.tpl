{{/* Name of what belongs to this release; at most 52 characters, so that suffixes fit. */}}
{{- define "trainyard.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains "trainyard" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-trainyard" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of what there is once a cluster: two releases in two namespaces must not share it. */}}
{{- define "trainyard.clustername" -}}
{{- printf "%s-%s" .Release.Namespace (include "trainyard.fullname" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "trainyard.selector" -}}
app.kubernetes.io/name: trainyard
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "trainyard.labels" -}}
{{ include "trainyard.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: trainyard
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* An image's reference from (list root image). A digest wins over the tag. */}}
{{- define "trainyard.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* The agent's pods. */}}
{{- define "trainyard.agent.selector" -}}
app.kubernetes.io/name: trainyard
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "trainyard.agent.labels" -}}
{{ include "trainyard.agent.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: trainyard
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "trainyard.agent.name" -}}
{{- printf "%s-agent" (include "trainyard.fullname" .) -}}
{{- end -}}

{{/* What reaches the pods of a release, and what they reach: of a NetworkPolicy's spec. */}}
{{- define "trainyard.network" -}}
{{- with .Values.networkPolicy -}}
policyTypes: [Ingress, Egress]
ingress:
- ports:
  - {port: http, protocol: TCP}
  from: {{- .metricsFrom | default (list (dict "namespaceSelector" dict)) | toYaml | nindent 2 }}
egress:
- ports:
  - {port: 53, protocol: UDP}
  - {port: 53, protocol: TCP}
- ports:
  {{- range .apiServer.ports }}
  - {port: {{ . }}, protocol: TCP}
  {{- end }}
  to:
  {{- range .apiServer.cidrs }}
  - ipBlock: {cidr: {{ . | quote }}}
  {{- end }}
{{- end -}}
{{- end -}}
