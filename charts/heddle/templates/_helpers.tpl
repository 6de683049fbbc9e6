{{/* Labels of every object. Call with the root. */}}
{{- define "heddle.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: heddle
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: heddle
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* By what Deployment, Service, PodDisruptionBudget and NetworkPolicy find the control plane's pods. Never changes: a
Deployment's selector cannot. */}}
{{- define "heddle.selector" -}}
app.kubernetes.io/name: heddle
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: control-plane
{{- end }}

{{/* An image's full name: registry/repository, then the digest or the tag. Call with (list $ .Values.x.image). */}}
{{- define "heddle.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.global.imageRegistry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end -}}
{{- end }}

{{/* The whole seconds of a duration as the control plane reads it: a number and ms, s, m or h. */}}
{{- define "heddle.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- if hasSuffix "ms" . }}{{ div (add $number 999) 1000 }}
{{- else if hasSuffix "s" . }}{{ $number }}
{{- else if hasSuffix "m" . }}{{ mul $number 60 }}
{{- else }}{{ mul $number 3600 }}{{ end -}}
{{- end }}

{{/* Requests and limits without the empty ones. */}}
{{- define "heddle.resources" -}}
{{- range $kind, $amounts := . }}
{{ $kind }}:
  {{- range $name, $amount := $amounts }}
  {{- if ne (toString $amount) "" }}
  {{ $name }}: {{ $amount | quote }}
  {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{/* What Pod Security's level "restricted" asks of a container, and a read-only root. */}}
{{- define "heddle.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* The same of a pod. The uid is that of the image; nothing of it is the proxy's (2715). */}}
{{- define "heddle.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Token, CA and namespace where clients in a cluster look for them. By hand, since the token that is mounted by itself
lives for a year, and nobody but this container needs one. */}}
{{- define "heddle.apiAccess" -}}
name: api-access
projected:
  defaultMode: 0440
  sources:
    - serviceAccountToken:
        path: token
        expirationSeconds: 3607
    - configMap:
        name: kube-root-ca.crt
        items:
          - key: ca.crt
            path: ca.crt
    - downwardAPI:
        items:
          - path: namespace
            fieldRef:
              fieldPath: metadata.namespace
{{- end }}
