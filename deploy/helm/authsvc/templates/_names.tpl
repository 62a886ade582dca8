{{- define "authsvc.name" -}}
{{- if contains "authsvc" .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-authsvc" (.Release.Name | trunc 42 | trimSuffix "-") }}{{ end -}}
{{- end -}}

{{- define "authsvc.selector" -}}
app.kubernetes.io/name: authsvc
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "authsvc.labels" -}}
{{ include "authsvc.selector" . }}
app.kubernetes.io/version: {{ mustRegexReplaceAll "[^A-Za-z0-9]+$" (.Values.image.tag | default .Chart.AppVersion | trunc 63) "" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "authsvc.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "authsvc.name" .) "default" .Values.serviceAccount.create) -}}
{{- end -}}

{{- define "authsvc.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end -}}

{{/* What two values have to say to each other, which a schema cannot. */}}
{{- define "authsvc.sound" -}}
{{- $least := .Values.podDisruptionBudget.minAvailable -}}
{{- if and (not (kindIs "string" $least)) (ge (int $least) (int .Values.replicas)) -}}
{{- fail (printf "podDisruptionBudget.minAvailable %d of %d replicas: no node could ever be drained; it must be less than replicas" (int $least) (int .Values.replicas)) -}}
{{- end -}}
{{- $stop := add .Values.preStopSeconds 17 -}}
{{- if lt (int .Values.terminationGracePeriodSeconds) (int $stop) -}}
{{- fail (printf "terminationGracePeriodSeconds %d: a replica would be killed while it drains; preStopSeconds and 17 are at least %d" (int .Values.terminationGracePeriodSeconds) (int $stop)) -}}
{{- end -}}
{{- if and .Values.secrets.sentinel.name (ne (dig "redis" "mode" "single" .Values.config) "sentinel") -}}
{{- fail "secrets.sentinel: is for Sentinels, and config.redis.mode is not sentinel: nobody would be asked with it" -}}
{{- end -}}
{{- if and .Values.monitoring.serviceMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.opsFrom) -}}
{{- fail "monitoring.serviceMonitor: nobody may scrape: say in networkPolicy.opsFrom where Prometheus is" -}}
{{- end -}}
{{- end -}}

{{/* authsvc.yaml: what the values say, and over it what the chart decides. */}}
{{- define "authsvc.config" -}}
{{- $tls := dict "cert_file" "/run/secrets/tls/tls.crt" "key_file" "/run/secrets/tls/tls.key" -}}
{{- $own := dict
  "http" (dict "address" ":8080" "tls" $tls)
  "grpc" (dict "address" ":9090" "tls" $tls)
  "ops" (dict "address" ":9091" "exposed" true)
  "admin" (dict "socket" "/run/authsvc/admin/admin.sock")
  "secrets" (dict "key_encryption_keys_file" "/run/secrets/keys/kek.json" "refresh_keys_file" "/run/secrets/keys/refresh.json") -}}
{{- if .Values.secrets.database.name -}}
{{- $_ := set $own "database" (dict "password_file" "/run/secrets/database/password") -}}
{{- end -}}
{{- $redis := dict -}}
{{- if .Values.secrets.redis.name -}}
{{- $_ := set $redis "password_file" "/run/secrets/redis/password" -}}
{{- end -}}
{{- if .Values.secrets.sentinel.name -}}
{{- $_ := set $redis "sentinel_password_file" "/run/secrets/sentinel/password" -}}
{{- end -}}
{{- if $redis -}}
{{- $_ := set $own "redis" $redis -}}
{{- end -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $own) -}}
{{- end -}}

{{/* The pod of a server and of the migration: what differs is the ConfigMap's name. */}}
{{- define "authsvc.volumes" -}}
- name: config
  configMap: {name: {{ .config }}}
- name: run
  emptyDir: {medium: Memory, sizeLimit: 1Mi}
- name: keys
  secret:
    secretName: {{ .Values.secrets.keys.name }}
    defaultMode: 0400
    items:
      - {key: {{ .Values.secrets.keys.keyEncryptionKeys | quote }}, path: kek.json}
      - {key: {{ .Values.secrets.keys.refreshKeys | quote }}, path: refresh.json}
- name: tls
  secret: {secretName: {{ .Values.secrets.tls.name }}, defaultMode: 0400}
{{- with .Values.secrets.database }}{{ if .name }}
- name: database
  secret:
    secretName: {{ .name }}
    defaultMode: 0400
    items: [{key: {{ .key | quote }}, path: password}]
{{- end }}{{ end }}
{{- with .Values.secrets.redis }}{{ if .name }}
- name: redis
  secret:
    secretName: {{ .name }}
    defaultMode: 0400
    items: [{key: {{ .key | quote }}, path: password}]
{{- end }}{{ end }}
{{- with .Values.secrets.sentinel }}{{ if .name }}
- name: sentinel
  secret:
    secretName: {{ .name }}
    defaultMode: 0400
    items: [{key: {{ .key | quote }}, path: password}]
{{- end }}{{ end }}
{{- with .Values.secrets.ca }}{{ if .name }}
- name: ca
  secret:
    secretName: {{ .name }}
    defaultMode: 0400
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}{{ end }}
{{- end -}}

{{- define "authsvc.mounts" -}}
- {name: config, mountPath: /etc/authsvc, readOnly: true}
- {name: run, mountPath: /run/authsvc}
- {name: keys, mountPath: /run/secrets/keys, readOnly: true}
- {name: tls, mountPath: /run/secrets/tls, readOnly: true}
{{- range $name := list "database" "redis" "sentinel" "ca" }}
{{- if (index $.Values.secrets $name).name }}
- {name: {{ $name }}, mountPath: /run/secrets/{{ $name }}, readOnly: true}
{{- end }}
{{- end }}
{{- end -}}

{{/* fsGroup makes a secret's files 0440, root's and of this group: authsvc takes them so, since it is not root. */}}
{{- define "authsvc.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "authsvc.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
capabilities: {drop: [ALL]}
{{- end -}}
