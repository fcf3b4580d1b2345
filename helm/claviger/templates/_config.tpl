{{/* One value of TOML. JSON's strings are strings of TOML too; YAML knows numbers of one kind only. */}}
{{- define "claviger.toml.value" -}}
{{- if kindIs "string" . }}
{{- toRawJson . }}
{{- else if kindIs "bool" . }}
{{- . }}
{{- else if kindIs "slice" . }}
{{- $items := list }}
{{- range . }}{{ $items = append $items (include "claviger.toml.value" .) }}{{ end }}
{{- printf "[%s]" (join ", " $items) }}
{{- else if kindIs "map" . }}
{{- $items := list }}
{{- range $key, $value := . }}{{ $items = append $items (printf "%s = %s" $key (include "claviger.toml.value" $value)) }}{{ end }}
{{- printf "{ %s }" (join ", " $items) }}
{{- else if eq (float64 (int64 .)) (float64 .) }}
{{- int64 . }}
{{- else }}
{{- . }}
{{- end }}
{{- end }}

{{/* The fields of a table, then the tables in it. Call with a dict of path, head (how it begins) and table. */}}
{{- define "claviger.toml.table" -}}
{{- $fields := list }}
{{- $tables := list }}
{{- range $key, $value := .table }}
{{- $path := printf "%s.%s" $.path $key | trimPrefix "." }}
{{- if kindIs "invalid" $value }}
{{- else if kindIs "map" $value }}
{{- $tables = append $tables (dict "path" $path "head" (printf "[%s]" $path) "table" $value) }}
{{- else if and (kindIs "slice" $value) (kindIs "map" (first $value)) }}
{{- range $value }}{{ $tables = append $tables (dict "path" $path "head" (printf "[[%s]]" $path) "table" .) }}{{ end }}
{{- else }}
{{- $fields = append $fields (printf "%s = %s" $key (include "claviger.toml.value" $value)) }}
{{- end }}
{{- end }}
{{- if $fields }}
{{- with .head }}
{{ . }}
{{- end }}
{{- range $fields }}
{{ . }}
{{- end }}
{{ end }}
{{- range $tables }}{{ include "claviger.toml.table" . }}{{ end }}
{{- end }}

{{/* claviger.toml: the values, and what the chart decides. */}}
{{- define "claviger.toml" -}}
{{- $name := include "claviger.fullname" . }}
{{- $decided := dict "environment" .Values.environment
  "grpc" (dict "listen" (printf "%s:8443" .Values.listenAddress))
  "public" (dict "listen" (printf "%s:8444" .Values.listenAddress))
  "ops" (dict "listen" (printf "%s:9090" .Values.listenAddress) "expose" true)
  "tls" (dict "certificate" "/etc/claviger/tls/tls.crt" "key" "/etc/claviger/tls/tls.key" "client_ca" "/etc/claviger/tls/client-ca.crt" "reload_seconds" (int .Values.tls.reloadSeconds))
  "database" (dict "url_file" "/etc/claviger/secrets/database-url") }}
{{- if eq .Values.database.engine "sqlite" }}
{{- $_ := set $decided "database" (dict "url" "sqlite:///var/lib/claviger/claviger.db") }}
{{- end }}
{{- with .Values.tls.crl }}{{ $_ := set $decided.tls "crl" . }}{{ end }}
{{- $config := mergeOverwrite (deepCopy .Values.config) $decided }}
{{- range $backend, $section := $config.backends }}
{{- if eq $section.type "pkcs11" }}
{{- $_ := set $section "pin_file" (printf "/etc/claviger/secrets/pin-%s" $backend) }}
{{- else if not (dig "quotas" "share_percent" 0 $section) }}
{{- /* All replicas draw on the account's quotas, one more of them while a rollout is under way. */}}
{{- $share := div 80 (add 1 (include "claviger.mostReplicas" $)) | max 1 }}
{{- $_ := set $section "quotas" (merge (dict "share_percent" $share) ($section.quotas | default dict)) }}
{{- end }}
{{- end }}
{{- if not $config.tokens.issuer }}
{{- $_ := set $config.tokens "issuer" (printf "https://%s-public.%s.svc:%d" $name .Release.Namespace (int .Values.service.public.port)) }}
{{- end }}
{{- $people := $config.bootstrap.principals | default list }}
{{- range $team, $role := include "claviger.teams" . | fromJson }}
{{- range index $.Values.securityTeam $team }}
{{- $roles := list (dict "role" $role "tenant" "*") }}
{{- $people = append $people (dict "name" .name "tenant" "system" "type" "user" "identities" .identities "roles" $roles) }}
{{- end }}
{{- end }}
{{- $_ := set $config.bootstrap "principals" $people }}
{{- include "claviger.toml.table" (dict "path" "" "head" "" "table" $config) | trim }}
{{- end }}

{{/* The lists of securityTeam and the role of those in it. */}}
{{- define "claviger.teams" -}}
{"admins": "principal-admin", "issuers": "key-issuer", "approvers": "key-approver", "deployers": "key-deployer", "officers": "security-officer", "auditors": "auditor"}
{{- end }}
