{{/* Match conditions: requests of service accounts, the controllers that collect and migrate objects left out. */}}
{{- define "trainyard.accounts" -}}
- name: service-accounts
  expression: request.userInfo.username.startsWith('system:serviceaccount:')
- name: but-not-the-control-plane
  expression: >-
    !(request.userInfo.username in ['system:serviceaccount:kube-system:generic-garbage-collector',
    'system:serviceaccount:kube-system:storage-version-migrator-controller'])
{{- end -}}
