{{/* The control plane's settings, one variable each; docs/operations.md lists them. */}}
{{- define "heddle.environment" -}}
{{- $set := list }}
{{- range $one := include "heddle.settings" . | fromYamlArray }}
{{- $set = append $set $one.name }}
{{- end }}
{{- range .Values.controlPlane.extraEnv }}
{{- if has .name $set }}
{{- fail (printf "\n\ncontrolPlane.extraEnv sets %s, which the chart sets itself. Write the value it is made of instead; docs/values.md lists them.\n" .name) }}
{{- end }}
{{- end }}
{{- include "heddle.settings" . }}
{{- with .Values.controlPlane.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "heddle.settings" -}}
- name: HEDDLE_SOURCE
  value: kubernetes
- name: HEDDLE_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: HEDDLE_POD
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: HEDDLE_LOG
  value: {{ .Values.controlPlane.log.filter | quote }}
- name: HEDDLE_LOG_FORMAT
  value: {{ .Values.controlPlane.log.format }}
- name: HEDDLE_STREAM_AGE
  value: {{ .Values.controlPlane.streamAge }}
- name: HEDDLE_DRAIN_TIMEOUT
  value: {{ .Values.controlPlane.drainTimeout }}
- name: HEDDLE_LEAF_LIFETIME
  value: {{ .Values.identity.leafLifetime }}
{{- with .Values.identity.csrPerMinute }}
- name: HEDDLE_CSR_PER_MINUTE
  value: {{ . | quote }}
{{- end }}
- name: HEDDLE_WEBHOOK_CERTIFICATE
  value: {{ .Values.webhook.certificate }}
- name: HEDDLE_PROXY_IMAGE
  value: {{ include "heddle.image" (list . .Values.proxy.image) | quote }}
- name: HEDDLE_INIT_IMAGE
  value: {{ include "heddle.image" (list . .Values.init.image) | quote }}
- name: HEDDLE_IMAGE_PULL_POLICY
  value: {{ .Values.proxy.image.pullPolicy }}
- name: HEDDLE_PROXY_LOG
  value: {{ .Values.proxy.log.filter | quote }}
- name: HEDDLE_PROXY_LOG_FORMAT
  value: {{ .Values.proxy.log.format }}
- name: HEDDLE_PROXY_ACCESS_LOG
  value: {{ .Values.proxy.accessLog | default "off" | quote }}
- name: HEDDLE_PROXY_DRAIN_TIMEOUT
  value: {{ .Values.proxy.drainTimeout }}
- name: HEDDLE_PROXY_TOKEN_LIFETIME
  value: {{ .Values.proxy.tokenLifetime }}
{{- range $container := list "proxy" "init" }}
{{- with (get $.Values $container).resources }}
- name: HEDDLE_{{ upper $container }}_CPU_REQUEST
  value: {{ .requests.cpu | quote }}
- name: HEDDLE_{{ upper $container }}_MEMORY_REQUEST
  value: {{ .requests.memory | quote }}
- name: HEDDLE_{{ upper $container }}_CPU_LIMIT
  value: {{ .limits.cpu | quote }}
- name: HEDDLE_{{ upper $container }}_MEMORY_LIMIT
  value: {{ .limits.memory | quote }}
{{- end }}
{{- end }}
{{- with .Values.redirection }}
- name: HEDDLE_SKIP_INBOUND_PORTS
  value: {{ .skipInboundPorts | quote }}
- name: HEDDLE_SKIP_OUTBOUND_PORTS
  value: {{ .skipOutboundPorts | quote }}
- name: HEDDLE_SKIP_OUTBOUND_CIDRS
  value: {{ join "," .skipOutboundRanges | quote }}
- name: HEDDLE_MAY_SKIP_INBOUND_PORTS
  value: {{ .podsMaySkipInboundPorts | quote }}
- name: HEDDLE_MAY_SKIP_OUTBOUND_PORTS
  value: {{ .podsMaySkipOutboundPorts | quote }}
{{- end }}
{{- end }}
