{{/* What all containers of Airflow share, and what every pod has. */}}
{{- define "standin.image" -}}
{{ .Values.defaultAirflowRepository }}:{{ .Values.defaultAirflowTag }}
{{- end }}

{{- define "standin.custom-env" -}}
{{- range .Values.env }}
- name: {{ .name }}
  value: {{ .value | quote }}
{{- end }}
{{- range .Values.secret }}
- name: {{ .envName }}
  valueFrom: {secretKeyRef: {name: {{ .secretName }}, key: {{ .secretKey | default "value" }}}}
{{- end }}
{{- with .Values.extraEnv }}
{{ tpl . $ }}
{{- end }}
{{- end }}

{{- define "standin.env" -}}
- {name: AIRFLOW_HOME, value: {{ .Values.airflowHome }}}
- name: AIRFLOW__CORE__FERNET_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.fernetKeySecretName }}, key: fernet-key}}
- name: AIRFLOW__DATABASE__SQL_ALCHEMY_CONN
  valueFrom: {secretKeyRef: {name: {{ .Values.data.metadataSecretName }}, key: connection}}
- name: AIRFLOW_CONN_AIRFLOW_DB
  valueFrom: {secretKeyRef: {name: {{ .Values.data.metadataSecretName }}, key: connection}}
- name: AIRFLOW__API__SECRET_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.apiSecretKeySecretName }}, key: api-secret-key}}
{{- end }}

{{/* For those that make tokens or check them. */}}
{{- define "standin.jwt-env" -}}
- name: AIRFLOW__API_AUTH__JWT_SECRET
  valueFrom: {secretKeyRef: {name: {{ .Values.jwtSecretName }}, key: jwt-secret}}
{{- end }}

{{- define "standin.mounts" -}}
- {name: config, mountPath: {{ .Values.airflowHome }}/airflow.cfg, subPath: airflow.cfg, readOnly: true}
{{- if .Values.airflowLocalSettings }}
- {name: config, mountPath: {{ .Values.airflowHome }}/config/airflow_local_settings.py, subPath: airflow_local_settings.py, readOnly: true}
{{- end }}
{{- with .Values.volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "standin.volumes" -}}
- name: config
  configMap: {name: {{ .Release.Name }}-config}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "standin.logs" -}}
- name: logs
  emptyDir: {{ .Values.logs.emptyDirConfig | default dict | toJson }}
{{- end }}

{{- define "standin.container" -}}
image: {{ include "standin.image" . }}
imagePullPolicy: IfNotPresent
securityContext: {{ toJson .Values.securityContexts.containers }}
{{- end }}

{{- define "standin.pod" -}}
securityContext: {{ toJson .Values.securityContexts.pod }}
{{- if ne .Values.enableServiceLinks nil }}
enableServiceLinks: {{ .Values.enableServiceLinks }}
{{- end }}
{{- end }}
