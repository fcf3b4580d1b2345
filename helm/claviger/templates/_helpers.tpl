{{- define "claviger.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 40 characters, so that what is appended still makes a DNS label. */}}
{{- define "claviger.fullname" -}}
{{- $name := include "claviger.name" . }}
{{- $release := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- .Values.fullnameOverride | default $release | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "claviger.selector" -}}
app.kubernetes.io/name: {{ include "claviger.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* What the Services, the budget and the spread mean: never the pods of hooks. */}}
{{- define "claviger.serverSelector" -}}
{{ include "claviger.selector" . }}
app.kubernetes.io/component: server
{{- end }}

{{- define "claviger.labels" -}}
{{ include "claviger.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "claviger.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "claviger.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "claviger.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* The account of the release is not there yet when the hook runs for the first time. */}}
{{- define "claviger.migrateAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- printf "%s-migrate" (include "claviger.fullname" .) }}
{{- else }}
{{- include "claviger.serviceAccount" . }}
{{- end }}
{{- end }}

{{/* A hook can reach neither a database that comes with the release nor a file that the daemon has locked. */}}
{{- define "claviger.migratesInPod" -}}
{{- if or .Values.postgresql.enabled (eq .Values.database.engine "sqlite") }}true{{ end }}
{{- end }}

{{- define "claviger.databaseSecret" -}}
{{- $own := printf "%s-database" (include "claviger.fullname" .) }}
{{- .Values.postgresql.enabled | ternary (printf "%s-postgresql" (include "claviger.fullname" .)) (.Values.secrets.database.name | default $own) }}
{{- end }}

{{- define "claviger.pinsSecret" -}}
{{- .Values.secrets.pins.name | default (printf "%s-pins" (include "claviger.fullname" .)) }}
{{- end }}

{{- define "claviger.tlsSecret" -}}
{{- .Values.tls.secret | default (printf "%s-tls" (include "claviger.fullname" .)) }}
{{- end }}

{{/* Names of the backends of one type, as JSON. Call with a dict of root and type. */}}
{{- define "claviger.backends" -}}
{{- $names := list }}
{{- range $name, $backend := .root.Values.config.backends }}
{{- if eq $backend.type $.type }}{{ $names = append $names $name }}{{ end }}
{{- end }}
{{- $names | sortAlpha | toJson }}
{{- end }}

{{- define "claviger.publicHost" -}}
{{- if .Values.ingress.enabled }}
{{- .Values.ingress.host }}
{{- else if .Values.gateway.enabled }}
{{- .Values.gateway.host }}
{{- end }}
{{- end }}

{{- define "claviger.mostReplicas" -}}
{{- .Values.autoscaling.enabled | ternary .Values.autoscaling.maxReplicas .Values.replicas }}
{{- end }}

{{/* As the drain goes: preStop; open calls; mutations that began last, of which generating a key pair is the longest; the
audit queue and the ops listener. */}}
{{- define "claviger.gracePeriod" -}}
{{- $config := .Values.config }}
{{- $grpc := dig "grpc" "drain_seconds" 30 $config | int }}
{{- $public := dig "public" "drain_seconds" 30 $config | int }}
{{- $generate := divf (dig "keys" "generate_timeout_ms" 25000 $config) 1000 | ceil | int }}
{{- add .Values.preStopSeconds (max $grpc $public) $generate 10 }}
{{- end }}

{{- define "claviger.podSecurityContext" -}}
runAsNonRoot: true
{{- range $key, $id := .Values.podSecurityContext }}
{{- if not (kindIs "invalid" $id) }}
{{ $key }}: {{ int64 $id }}
{{- end }}
{{- end }}
{{- if .Values.podSecurityContext.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "claviger.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What every pod of the daemon's image has. Service links would be variables named CLAVIGER_…, which the daemon takes
for settings that it does not know. */}}
{{- define "claviger.podBasics" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  {{- include "claviger.podSecurityContext" . | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "claviger.secretsVolume" -}}
- name: secrets
{{- if eq .Values.secrets.provider "csi" }}
  csi:
    driver: secrets-store.csi.k8s.io
    readOnly: true
    volumeAttributes:
      secretProviderClass: {{ .Values.secrets.csi.secretProviderClass }}
{{- else }}
  projected:
    defaultMode: 0440
    sources:
      {{- if ne .Values.database.engine "sqlite" }}
      - secret:
          name: {{ include "claviger.databaseSecret" . }}
          items:
            - key: {{ .Values.postgresql.enabled | ternary "url" .Values.secrets.database.key }}
              path: database-url
      {{- end }}
      {{- with include "claviger.backends" (dict "root" . "type" "pkcs11") | fromJsonArray }}
      - secret:
          name: {{ include "claviger.pinsSecret" $ }}
          items:
            {{- range . }}
            - {key: {{ . }}, path: pin-{{ . }}}
            {{- end }}
      {{- end }}
{{- end }}
{{- end }}

{{/* What the daemon and `kek create` need to reach database and devices. */}}
{{- define "claviger.deviceVolumes" -}}
- name: config
  configMap:
    name: {{ include "claviger.fullname" . }}
{{ include "claviger.secretsVolume" . }}
{{- if .Values.vendorModule.image }}
- name: pkcs11-module
  emptyDir:
    sizeLimit: {{ .Values.vendorModule.sizeLimit }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "claviger.deviceMounts" -}}
- {name: config, mountPath: /etc/claviger/claviger.toml, subPath: claviger.toml, readOnly: true}
- {name: secrets, mountPath: /etc/claviger/secrets, readOnly: true}
{{- if .Values.vendorModule.image }}
- {name: pkcs11-module, mountPath: {{ .Values.vendorModule.mountPath }}, readOnly: true}
{{- end }}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "claviger.deviceInit" -}}
{{- if .Values.vendorModule.image -}}
- name: pkcs11-module
  image: {{ .Values.vendorModule.image }}
  command:
    {{- toYaml .Values.vendorModule.command | nindent 4 }}
  securityContext:
    {{- include "claviger.securityContext" . | nindent 4 }}
  resources:
    {{- toYaml .Values.migration.resources | nindent 4 }}
  volumeMounts:
    - {name: pkcs11-module, mountPath: {{ .Values.vendorModule.mountPath }}}
{{- end }}
{{- with .Values.extraInitContainers }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whether some volume that the daemon may write to holds the path. Call with a dict of root and path. */}}
{{- define "claviger.isMounted" -}}
{{- $own := dict "mountPath" "/var/lib/claviger-checkpoints" "readOnly" (empty .root.Values.checkpoints.existingClaim) }}
{{- range append .root.Values.extraVolumeMounts $own }}
{{- if and (not .readOnly) (hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $.path) }}true{{ end }}
{{- end }}
{{- end }}

{{/* Before an installation and before an upgrade, in the order of the weight. */}}
{{- define "claviger.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- define "claviger.egress.dns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- define "claviger.egress.database" -}}
- ports:
    - {port: {{ .Values.networkPolicy.database.port }}, protocol: TCP}
  {{- with .Values.networkPolicy.database.to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "claviger.certificate" -}}
{{- with .Values.certManager -}}
duration: {{ .duration }}
renewBefore: {{ .renewBefore }}
privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Always}
issuerRef:
  {{- toYaml .issuerRef | nindent 2 }}
{{- end }}
{{- end }}
