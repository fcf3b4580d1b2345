{{/* An ExternalSecret. Call with a dict of root, name (also of the Secret it makes), secrets (key and where the store has
its value) and, for one that lives as long as the migration, hook. */}}
{{- define "claviger.externalSecret" -}}
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata:
  name: {{ .name }}
  labels:
    {{- include "claviger.labels" .root | nindent 4 }}
  {{- if .hook }}
  annotations:
    {{- include "claviger.hook" -10 | nindent 4 }}
  {{- end }}
spec:
  {{- with .root.Values.secrets.external }}
  refreshInterval: {{ .refreshInterval }}
  secretStoreRef:
    name: {{ .store.name }}
    kind: {{ .store.kind }}
  {{- end }}
  target:
    name: {{ .name }}
  data:
    {{- range $key, $remote := .secrets }}
    - secretKey: {{ $key }}
      remoteRef:
        {{- toYaml $remote | nindent 8 }}
    {{- end }}
{{- end }}
